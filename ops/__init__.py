"""Commands around the pipeline that are no stage: `python -m ops.<name>`."""

import os

from stages.common.run import QUIET

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)
