"""Serves a model with llama.cpp's server until standard input ends. Usage: serve.py MODEL

Prints the address on which it listens. A test can exceed the context, in which a character is a token.
"""
import sys

import xllamacpp

CONTEXT, SLOTS = 8192, 4

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.hostnames = ["127.0.0.1"]
params.port = 0
params.n_ctx = CONTEXT * SLOTS
params.n_parallel = SLOTS
params.kv_unified = False
params.use_jinja = True
params.cpuparams.n_threads = 1
params.warmup = False
params.sampling.seed = 1

server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
