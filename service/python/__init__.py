"""The Python API, which `import safelight` offers."""
