import sys

from nslib.cli import main

sys.exit(main())
