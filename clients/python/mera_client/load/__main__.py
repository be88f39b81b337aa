"""`python -m mera_client.load`."""

from __future__ import annotations

import sys

from mera_client.load import main

if __name__ == "__main__":
    sys.exit(main())
