"""The kernels and the engine on one GPU: `python -m benchmarks gpu`, or `python3 dev.py bench gpu`.

One table of under eight minutes, and the same as JSON. What a kernel moves or computes is divided by what the card was
seen to copy or multiply in the same run; each is compared with its definition there, bit for bit where it promises
that. Then post-training quantization and a distillation step of a random model with the shapes of an 8B Llama, beside
closed-form floors of time and memory.

It runs from a checkout with torch, triton, transformers, safetensors and numpy; pydantic, which the engine needs too,
must be there or be carried along on PYTHONPATH. Public kernels (torchao, Liger) are measured where they are installed.
An operator is a module with `cases(sizes)`, listed in `registry`.
"""
