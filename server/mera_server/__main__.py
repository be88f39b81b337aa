"""`python -m mera_server` is `mera`."""

import sys

from mera_server.cli import main

sys.exit(main())
