"""The server: a replica that orders and applies operations, and the AMP service in front of it."""

import gc

# Twisted is imported by now, and stays. The collector would look all of that through again and again while the rest is
# imported, which takes a tenth of a daemon's start.
gc.freeze()
