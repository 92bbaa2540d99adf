"""`python -m agentrl.retriever build | serve | query`."""

import sys

from agentrl.retriever.cli import main

if __name__ == "__main__":
    sys.exit(main())
