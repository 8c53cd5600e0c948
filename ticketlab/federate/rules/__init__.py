"""Rules of federated pruning: what is sent, what a client does with it, how answers become one network."""
