"""The command of any launcher: `torchrun --nproc-per-node 8 -m trainer train ...`."""

import sys

from trainer.cli import main

sys.exit(main())
