"""Stands in for the vendor: has models/original-1 unlearn, and writes models/target."""

from pathlib import Path

from vendor import unlearn

from muaudit.loaders.example_files import read_task
from muaudit.models.classifier import Classifier
from muaudit.training.networks import Provenance, SavedNetwork, save_network

HERE = Path(__file__).parent


def main() -> None:
    """Weights of a network of your own go into safetensors.torch.save_model instead, with a `factory` in audit.toml."""
    task = read_task(HERE / "forget.npz", HERE / "retain.npz", HERE / "holdout.npz")
    before = HERE / "models" / "original-1"
    network = SavedNetwork.model_validate_json((before / "classifier.json").read_bytes()).network
    model = unlearn(Classifier.open(before).module(), task.forget, task.retain, seed=1)
    save_network(model, network, HERE / "models" / "target", Provenance())


if __name__ == "__main__":
    main()
