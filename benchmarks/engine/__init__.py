"""The training engine beside its peers: speed at equal loss. `make bench-engine`, `make bench-engine-gpu`.

| file | what it does |
| --- | --- |
| __main__.py | the CPU benchmark, from top to bottom; its last line is the result |
| gpu.py | the same on an NVIDIA GPU, with an 8B-shaped Llama of random weights |
| workload.py | the two datasets and the settings that both sides share |
| export.py | what the peer is given: token ids, the samples of every step, the LoRA's first weights |
| ours.py, peer.py | one side each, a process of its own: `train()`, and TRL's or Unsloth's SFTTrainer |
| turns.py | the sides take turns, a few steps each, so that a busy machine slows all of them alike |
| gate.py | equal loss: what is compared with what, and the verdict |
| gradients.py | step-0 loss and gradients of the engine and of an fp32 reference |
| arithmetic.py | operations per token, and how many a second the machine's product does |
| repack.py | stock bitsandbytes stops learning after one evaluation, shown |
| environment.py | a peer's own virtual environment, from its hash-locked list |
"""
