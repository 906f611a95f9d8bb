"""What a GPU is tested with: `make gpu` runs `tests.gpu.__main__` on a machine that has one.

The tests in this folder run on every device that there is. On a processor they show that they can pass.
"""
