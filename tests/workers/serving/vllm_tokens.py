"""What vLLM makes of a text with each base's tokenizer: folders as arguments, token ids as JSON lines."""

import json
import sys

from vllm.tokenizers import get_tokenizer

from workers.serving.reading import TEXT

for folder in sys.argv[1:]:
    print(json.dumps(list(get_tokenizer(folder).encode(TEXT, add_special_tokens=False))))
