"""One page for what came of runs: tables and figures that stand by themselves, without a network or a script."""
