# A thin alias: `make demo` is `python3 dev.py demo`. Pass more with ARGS, as in `make test ARGS="-k house"`.
TARGETS := demo test check up proofs proofs-ptq proofs-training proofs-restructure proofs-drafts proofs-exports proofs-kernels chaos bench bench-ptq docs audit
.PHONY: $(TARGETS)
$(TARGETS):
	@python3 dev.py $@ $(ARGS)
