"""Why something in Ray failed, in one line, from the reports of Ray and Serve."""

import re

ERROR_LINE = re.compile(r"^\S*(?:Error|Exception): (.+)$", re.MULTILINE)


def first_cause(*reports: str) -> str:
    """The message of the innermost exception in the first of Serve's `reports` that holds a traceback.

    Without one, the last line of the last report.
    """
    causes = [cause for report in reports for cause in ERROR_LINE.findall(report)[-1:]]
    return str(causes[0]) if causes else reports[-1].strip().splitlines()[-1]
