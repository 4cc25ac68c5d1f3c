"""`[[task.evaluators]]` of audit.toml: who says whether a concept is in an image."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from muaudit.results import Frozen
from muaudit.training import vendor

Share = Annotated[float, Field(gt=0, le=1)]
Pixels = Annotated[int, Field(ge=1)]
Text = Annotated[str, Field(min_length=1)]
Class = Annotated[int, Field(ge=0)] | Text
"""A class of an evaluator, by number or by the name that its own folder gives it."""

Agreement = Literal["all", "any"]


class _Evaluator(Frozen):
    """What all evaluators have in common.

    Attributes:
        name: What results call it; its kind and place by default.
    """

    name: Text | None = None


class _Pictured(_Evaluator):
    """What evaluators from a local folder have in common.

    Attributes:
        path: Its folder or file.
        image_mode: "RGB" or "L" where the images have to become that first; the folder's own where it says it. Grey is
            repeated for colours; colours become grey by ITU-R 601 luma.
        image_size: Height and width that images are resized to first (bilinear, antialiased); the folder's own where it says
            it.
        batch_size: Images at a time.
    """

    path: Text
    image_mode: Literal["RGB", "L"] | None = None
    image_size: tuple[Pixels, Pixels] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64


class ClassifierEvaluator(_Pictured):
    """An image classifier of any make that audits open as models.

    Attributes:
        path: A Hugging Face image-classification folder, a folder with classifier.json, a .skops or an .onnx file.
        labels: Each concept's class, or classes where several are that concept. Without it a concept is the class of its own
            name, which only Hugging Face folders have.
        top: A concept is in an image when one of its classes is among so many highest.
        threshold: Instead: when the probability of its classes together is at least this.
    """

    kind: Literal["classifier"]
    labels: dict[Text, Class | Annotated[tuple[Class, ...], Field(min_length=1)]] = {}
    top: Annotated[int, Field(ge=1)] = 1
    threshold: Share | None = None

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.threshold is not None and "top" in self.model_fields_set:
            raise ValueError("top and threshold are two rules; give one of them")
        return self


class ClipEvaluator(_Pictured):
    """A zero-shot classifier: which of several texts is nearest to the image (Radford et al. 2021, arXiv 2103.00020)?

    Attributes:
        path: A Hugging Face folder of a CLIP model, with its tokenizer and image processor.
        template: What is said of a concept; `{}` stands for its name.
        texts: Instead of the template: what is said of a concept, by concept.
        others: Further texts to choose from, which are none of the task's concepts; "a photo" is a good one.
        top: A concept is in an image when its text is among so many nearest.
        threshold: Instead: when the softmax over all texts gives its text at least this.
    """

    kind: Literal["clip"]
    template: Text = "a photo of a {}"
    texts: dict[Text, Text] = {}
    others: tuple[Text, ...] = ()
    top: Annotated[int, Field(ge=1)] = 1
    threshold: Share | None = None

    @field_validator("template")
    @classmethod
    def _with_a_place(cls, template: str) -> str:
        if template.count("{}") != 1:
            raise ValueError("a template says once where the concept's name goes, by {}, such as 'a photo of a {}'")
        return template

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if self.threshold is not None and "top" in self.model_fields_set:
            raise ValueError("top and threshold are two rules; give one of them")
        return self


class DetectorEvaluator(_Pictured):
    """An object detector: is there a box of the concept?

    Attributes:
        path: A Hugging Face object-detection folder, with its image processor.
        labels: Each concept's label, or labels where several are that concept; without it, the label of its own name.
        threshold: Least score of a box.
    """

    kind: Literal["detector"]
    labels: dict[Text, Class | Annotated[tuple[Class, ...], Field(min_length=1)]] = {}
    threshold: Share = 0.5


class PythonEvaluator(_Evaluator):
    """The vendor's own function; it is run.

    Attributes:
        function: `module:function` or `file.py:function`, called with float32 images [n, channels, height, width] in [0, 1] and
            their n concepts; it returns n booleans, or n scores in [0, 1].
        threshold: Least score of an image that shows the concept.
    """

    kind: Literal["python"]
    function: str
    threshold: Share = 0.5

    @field_validator("function")
    @classmethod
    def _names_a_function(cls, function: str) -> str:
        vendor.split(function)
        return function


EvaluatorConfig = Annotated[
    ClassifierEvaluator | ClipEvaluator | DetectorEvaluator | PythonEvaluator, Field(discriminator="kind")
]


def names(evaluators: Sequence[EvaluatorConfig]) -> list[str]:
    """What results call the evaluators.

    Args:
        evaluators: In their order.

    Returns:
        Each one's own name, or its kind, numbered where several would be called the same.
    """
    given = [one.name or one.kind for one in evaluators]
    return [name if given.count(name) == 1 else f"{name} {place}" for place, name in enumerate(given, start=1)]


def functions(evaluators: Sequence[EvaluatorConfig]) -> Mapping[str, str]:
    """The functions of others that these evaluators run, for the plan's record of code.

    Args:
        evaluators: In their order.

    Returns:
        Function by what it is for, such as "evaluator python".
    """
    return {
        f"evaluator {name}": one.function
        for name, one in zip(names(evaluators), evaluators, strict=True)
        if isinstance(one, PythonEvaluator)
    }


def paths(evaluators: Sequence[EvaluatorConfig]) -> Mapping[str, str]:
    """The files and folders of these evaluators, for the plan's records.

    Args:
        evaluators: In their order.

    Returns:
        Path by what it is for, such as "evaluator classifier".
    """
    return {
        f"evaluator {name}": one.path
        for name, one in zip(names(evaluators), evaluators, strict=True)
        if not isinstance(one, PythonEvaluator)
    }
