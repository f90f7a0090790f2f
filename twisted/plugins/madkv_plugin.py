"""`twistd madkv-server` and `twistd madkv-manager`, found by Twisted on the Python path.

No `__init__.py` may stand beside this file.
"""

from twisted.application.service import ServiceMaker

madkv_server = ServiceMaker("MadKV server", "madkv.server.tap", "A MadKV server.", "madkv-server")
madkv_manager = ServiceMaker("MadKV manager", "madkv.manager.tap", "A manager of a MadKV cluster.", "madkv-manager")
