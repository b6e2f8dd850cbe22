"""`python -m lowhaio_waterfall`"""

import sys

from .command import main

sys.exit(main())
