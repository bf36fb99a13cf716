"""The bases that Stillhouse knows, as data. A row says how a base thinks; its weights come with `manage.py
base add`.

Revisions are left empty: weights are copied onto the site by hand, so what was really added is pinned by its
digest.
"""

from dataclasses import dataclass

from workers.contract import ThinkContract

ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

PLAIN = ThinkContract(family="plain", history_keeps=True)
R1_QWEN = ThinkContract(family="r1_qwen", prompt_opens=True)
R1_LLAMA = ThinkContract(family="r1_llama", prompt_opens=True)
R1_0528 = ThinkContract(family="r1_0528_qwen3")
QWEN3 = ThinkContract(family="qwen3", switch="template_flag")
QWQ = ThinkContract(family="qwq", prompt_opens=True)
NEMOTRON = ThinkContract(family="nemotron", switch="system_prompt")
NEMOTRON_1_5 = ThinkContract(family="nemotron", switch="system_prompt", switch_on="", switch_off="/no_think")

APACHE, MIT = "Apache-2.0", "MIT"
NVIDIA = "NVIDIA Open Model License"


@dataclass(frozen=True)
class Base:
    """One row of the catalog. `context_length` in tokens, `parameters` as published."""

    id: str
    name: str
    hub_id: str
    licence: str
    parameters: int
    context_length: int
    think: ThinkContract
    description: str
    revision: str = ""
    lora_targets: tuple[str, ...] = ALL_LINEAR
    max_rank: int = 64


BASES: tuple[Base, ...] = (
    Base(
        "smollm2-135m-instruct",
        "SmolLM2 135M Instruct",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        APACHE,
        134_515_008,
        8192,
        PLAIN,
        "The demonstration base: small enough to train and serve on two CPU cores. No reasoner by birth.",
        max_rank=32,  # a CPU engine slows down with the largest rank it allows, whatever the adapter's own
    ),
    Base(
        "deepseek-r1-0528-qwen3-8b",
        "DeepSeek R1 0528 Qwen3 8B",
        "deepseek-ai/DeepSeek-R1-0528-Qwen3-8B",
        MIT,
        8_190_735_360,
        131_072,
        R1_0528,
        "R1-0528 reasoning on Qwen3 8B; it opens its reasoning itself.",
    ),
    Base(
        "deepseek-r1-distill-qwen-1.5b",
        "DeepSeek R1 Distill Qwen 1.5B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B",
        MIT,
        1_777_088_000,
        131_072,
        R1_QWEN,
        "The smallest R1 distill, for narrow tasks and small GPUs.",
    ),
    Base(
        "deepseek-r1-distill-qwen-7b",
        "DeepSeek R1 Distill Qwen 7B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
        MIT,
        7_615_616_512,
        131_072,
        R1_QWEN,
        "R1 reasoning on Qwen2.5 Math 7B.",
    ),
    Base(
        "deepseek-r1-distill-qwen-14b",
        "DeepSeek R1 Distill Qwen 14B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B",
        MIT,
        14_770_033_664,
        131_072,
        R1_QWEN,
        "R1 reasoning on Qwen2.5 14B.",
    ),
    Base(
        "deepseek-r1-distill-qwen-32b",
        "DeepSeek R1 Distill Qwen 32B",
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-32B",
        MIT,
        32_763_876_352,
        131_072,
        R1_QWEN,
        "R1 reasoning on Qwen2.5 32B.",
    ),
    Base(
        "deepseek-r1-distill-llama-8b",
        "DeepSeek R1 Distill Llama 8B",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-8B",
        "MIT, and the Llama 3.1 Community License",
        8_030_261_248,
        131_072,
        R1_LLAMA,
        "R1 reasoning on Llama 3.1 8B.",
    ),
    Base(
        "deepseek-r1-distill-llama-70b",
        "DeepSeek R1 Distill Llama 70B",
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
        "MIT, and the Llama 3.3 Community License",
        70_553_706_496,
        131_072,
        R1_LLAMA,
        "R1 reasoning on Llama 3.3 70B Instruct.",
    ),
    Base(
        "llama-3.1-nemotron-nano-8b-v1",
        "Llama 3.1 Nemotron Nano 8B",
        "nvidia/Llama-3.1-Nemotron-Nano-8B-v1",
        f"{NVIDIA}, and the Llama 3.1 Community License",
        8_030_261_248,
        131_072,
        NEMOTRON,
        "Reasoning switched by the system prompt: detailed thinking on / off.",
    ),
    Base(
        "llama-3.3-nemotron-super-49b-v1",
        "Llama 3.3 Nemotron Super 49B",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1",
        f"{NVIDIA}, and the Llama 3.3 Community License",
        49_867_145_216,
        131_072,
        NEMOTRON,
        "Reasoning switched by the system prompt. As published it asks for remote code: "
        "Stillhouse refuses that; add a copy converted to plain files.",
    ),
    Base(
        "llama-3.3-nemotron-super-49b-v1.5",
        "Llama 3.3 Nemotron Super 49B v1.5",
        "nvidia/Llama-3_3-Nemotron-Super-49B-v1_5",
        f"{NVIDIA}, and the Llama 3.3 Community License",
        49_867_145_216,
        131_072,
        NEMOTRON_1_5,
        "Reasons unless the system prompt says /no_think. As published it asks for remote code: "
        "Stillhouse refuses that; add a copy converted to plain files.",
    ),
    Base(
        "qwen3-0.6b",
        "Qwen3 0.6B",
        "Qwen/Qwen3-0.6B",
        APACHE,
        596_049_920,
        32_768,
        QWEN3,
        "The smallest Qwen3.",
    ),
    Base(
        "qwen3-1.7b",
        "Qwen3 1.7B",
        "Qwen/Qwen3-1.7B",
        APACHE,
        1_720_574_976,
        32_768,
        QWEN3,
        "Reasoning switched per request.",
    ),
    Base(
        "qwen3-4b",
        "Qwen3 4B",
        "Qwen/Qwen3-4B",
        APACHE,
        4_022_468_096,
        32_768,
        QWEN3,
        "Reasoning switched per request.",
    ),
    Base(
        "qwen3-8b",
        "Qwen3 8B",
        "Qwen/Qwen3-8B",
        APACHE,
        8_190_735_360,
        32_768,
        QWEN3,
        "Reasoning switched per request.",
    ),
    Base(
        "qwen3-14b",
        "Qwen3 14B",
        "Qwen/Qwen3-14B",
        APACHE,
        14_768_307_200,
        32_768,
        QWEN3,
        "Reasoning switched per request.",
    ),
    Base(
        "qwen3-32b",
        "Qwen3 32B",
        "Qwen/Qwen3-32B",
        APACHE,
        32_762_123_264,
        32_768,
        QWEN3,
        "Reasoning switched per request.",
    ),
    Base(
        "qwq-32b",
        "QwQ 32B",
        "Qwen/QwQ-32B",
        APACHE,
        32_763_876_352,
        131_072,
        QWQ,
        "Always reasons, at length.",
    ),
)
