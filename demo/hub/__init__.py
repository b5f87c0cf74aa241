"""A local peer of the Hugging Face Hub: repositories in a folder, by commit, behind the Hub's HTTP interface.

    python -m demo.hub --root DIR            prints its address; HF_ENDPOINT=<address> is all that a client needs

The real `huggingface_hub` client creates, uploads (LFS and xet), commits, branches, tags, reads and deletes here, opens
pull requests and merges them, as it does on the Hub, so the demo and the tests need neither a network nor an account.
"""
