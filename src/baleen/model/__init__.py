"""The network, defined once for training, sampling and scoring: MLA, lightning indexer, experts, MTP; checkpoints."""
