"""What the launcher of the Flex Template starts: the command line of beam-curate."""

import sys

from beam_curate.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
