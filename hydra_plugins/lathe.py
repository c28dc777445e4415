"""Registers Lathe's schema with Hydra, so that `dvc exp run` type-checks conf/ before any stage starts.

DVC loads this module because .dvc/config sets hydra.plugins_path to the repository's root; `python -m ops.*`
finds it because the root is the working directory. hydra_plugins is Hydra's namespace package: no __init__,
and no dataclass in here, since Hydra executes a plugin without entering it in sys.modules.
"""

import ops.schema  # noqa: F401 - importing it registers
