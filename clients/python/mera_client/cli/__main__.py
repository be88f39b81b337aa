"""`python -m mera_client.cli`: the same as `mera-client`."""

from __future__ import annotations

import sys

from mera_client.cli import main

if __name__ == "__main__":
    sys.exit(main())
