"""Train a retriever on your own questions, then search with it: two minutes on two CPU cores.

town.jsonl holds 50 questions such as "Who owns the shop where Mara works?", each over 18 sentences. One sentence says
where Mara works, another one who owns that shop; which one that is can only be known after the first was found.

    python examples/train_on_your_data.py [OUTPUT_FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from qrag_retriever import QRAGModel, QRAGRetriever
from qrag_retriever.training import Trainer
from qrag_retriever.training.recipe import parse_recipe

HERE = Path(__file__).parent
RECIPE = {
    # The sentences have no order that matters: mode "corpus", no positions.
    "model": {"positions": "none"},
    "data": [{"source": "town.jsonl", "mode": "corpus", "step_limit": 3}],
    "warm_start": {"num_updates": 60, "samples_per_update": 8, "fresh_tokens": 800, "learning_rate": 5e-5},
    "pqn": {"num_updates": 20, "num_envs": 8, "num_steps": 3, "warmup_updates": 5, "learning_rate": 2e-5},
    "run": {"evaluate_updates": 20, "tensorboard": False},
}
# A town that the training has not seen.
CHUNKS = [
    "Wilma works as a glazier at the Silver Pane.",
    "The Silver Pane stands on Quarry Road.",
    "Otto took a job at the Red Lantern last June.",
    "You find the Red Lantern on Abbey Close.",
    "Mr. Castellan owns the Red Lantern.",
    "The Silver Pane belongs to Ms. Whitlock.",
    "Wilma keeps a goldfish.",
    "The market is busy on Saturdays.",
    "A new bridge was opened in May.",
]
QUESTION = "Who owns the shop where Wilma works?"


def show(title: str, model: QRAGModel) -> None:
    retriever = QRAGRetriever.from_texts(CHUNKS, model=model, mode="corpus", k=3)
    print(f"\n{title}: {QUESTION}")
    for hop, step in enumerate(retriever.search(QUESTION).steps, 1):
        print(f"  hop {hop}  Q {step.q_value:+.2f}  {step.text}")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(sys.argv[1] if len(sys.argv) > 1 else scratch) / "town"
        recipe = parse_recipe({**RECIPE, "run": {**RECIPE["run"], "output": str(output)}})
        trainer = Trainer(recipe, recipe_folder=HERE)
        try:
            model = trainer.fit()
        except FileExistsError as error:
            sys.exit(f"{error}")
        # A folder that is gone when this ends is of no use to anybody.
        print(trainer.closing_words() if len(sys.argv) > 1 else "Name an OUTPUT_FOLDER to keep the model.")
        show("before (all-MiniLM-L6-v2, untrained)", QRAGModel.from_encoder("all-MiniLM-L6-v2"))
        show("after", model)


if __name__ == "__main__":
    main()
