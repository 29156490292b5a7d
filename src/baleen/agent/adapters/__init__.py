"""Other projects' formats, each thin: environments of ours in their programs, and theirs here."""
