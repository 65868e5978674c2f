"""The conformance suite of SMH-2: laws, cases, golden vectors and an oracle, run by ``smh conformance`` or pytest.

Its modules import one another as ``conformance``, from a checkout. In an installation the suite lies inside the
library, and the line below makes the name known.
"""

import sys

sys.modules.setdefault("conformance", sys.modules[__name__])
