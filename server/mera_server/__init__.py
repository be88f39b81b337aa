"""The HTTP server and the command line around `merasteer`."""

import os
import sys

# Threads that spin at OpenMP's barriers starve each other where another process has a core: measured on two cores beside two
# busy processes, 7 to 12 requests a second spinning, 230 to 260 sleeping. OpenMP reads it once, as torch is loaded: it is set
# here, ahead of every way in (`mera`, `create_app`, a module of ours), and not where it would only reach child processes.
if "torch" not in sys.modules:
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
