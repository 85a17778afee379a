"""What a pick is worth: rewards judge all environments of one step at once and keep no state of an episode.

`SupportingFactsReward` needs annotated evidence, `AnswerContainedReward` only answers that are written in the text,
`LLMAnswerReward` only answers and a language model. A reward of one's own is any object with the three methods of
`Reward`.
"""

from qrag_retriever.training.rewards.base import Feedback, Outcome, Reward
from qrag_retriever.training.rewards.contained import AnswerContainedReward, FalsePositives, false_positive_rate
from qrag_retriever.training.rewards.facts import SupportingFactsReward
from qrag_retriever.training.rewards.llm import LLMAnswerReward

__all__ = [
    "AnswerContainedReward",
    "FalsePositives",
    "Feedback",
    "LLMAnswerReward",
    "Outcome",
    "Reward",
    "SupportingFactsReward",
    "false_positive_rate",
]
