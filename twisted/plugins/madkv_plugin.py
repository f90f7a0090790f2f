"""`twistd madkv-server`, found by Twisted on the Python path. No `__init__.py` may stand beside this file."""

from twisted.application.service import ServiceMaker

madkv_server = ServiceMaker("MadKV server", "madkv.server.tap", "A MadKV server.", "madkv-server")
