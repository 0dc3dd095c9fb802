# SPDX-License-Identifier: MIT OR Apache-2.0
"""`python -m torch_mi` is `torch-mi`."""

from torch_mi.cli.main import main

if __name__ == "__main__":
    main()
