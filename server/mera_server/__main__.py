"""`python -m mera_server` is `mera`."""

import sys

from mera_server.start import main

sys.exit(main())
