"""What is known of the language runtimes inside traced processes: addresses and offsets.

Read from the processes' own files and memory, never written to them. A version nobody
has tables for is no fact but a reason in words: weaker evidence is used then.
"""
