"""Runs of the hops written by hand, with names, things and cities that the generator does not have."""

from __future__ import annotations

from dataclasses import dataclass

import dspy


@dataclass(frozen=True)
class Shown:
    """A run that was written by hand.

    Attributes:
        context: The text.
        subject: Whom or what the question is about.
        facts: The facts that lead to the answer.
        answer: The gold answer.
    """

    context: str
    subject: str
    facts: tuple[str, ...]
    answer: str

    def example(self, question: str) -> dspy.Example:
        """Return the example of this run, with a question about `{subject}`."""
        example = dspy.Example(context=self.context, question=question.format(subject=self.subject), answer=self.answer)
        return example.with_inputs("context", "question")


WORK_RUNS = (
    Shown("Bea works for Carl. Carl lives in Bern.", "Bea", ("Bea works for Carl.", "Carl lives in Bern."), "Bern"),
    Shown(
        "Sven lives in Osaka. Greta works for Sven. Timo lives in Turin. Rolf works for Timo.",
        "Rolf",
        ("Rolf works for Timo.", "Timo lives in Turin."),
        "Turin",
    ),
    Shown(
        "Dora works for Lars. Milo works for Olga. Lars lives in Leeds. Nils lives in Malmo. Olga lives in Porto. "
        "Wanda works for Nils.",
        "Milo",
        ("Milo works for Olga.", "Olga lives in Porto."),
        "Porto",
    ),
    Shown(
        "Ulf lives in Basel. Jette lives in Miami. Ralf works for Jette. Britt works for Ulf.",
        "Ralf",
        ("Ralf works for Jette.", "Jette lives in Miami."),
        "Miami",
    ),
    Shown("Joel lives in Lyon. Pia works for Joel.", "Pia", ("Pia works for Joel.", "Joel lives in Lyon."), "Lyon"),
    Shown(
        "Kurt works for Axel. Gus lives in Delft. Tilda works for Selma. Selma lives in Graz. Boris works for Gus. "
        "Axel lives in Cork.",
        "Kurt",
        ("Kurt works for Axel.", "Axel lives in Cork."),
        "Cork",
    ),
    Shown(
        "Ute works for Cleo. Hedda works for Knut. Knut lives in Salta. Cleo lives in Busan.",
        "Ute",
        ("Ute works for Cleo.", "Cleo lives in Busan."),
        "Busan",
    ),
    Shown(
        "Liv lives in Bonn. Fritz lives in Kobe. Mabel works for Fritz. Ella works for Dirk. Dirk lives in Ghent. "
        "Nora works for Liv.",
        "Nora",
        ("Nora works for Liv.", "Liv lives in Bonn."),
        "Bonn",
    ),
    Shown(
        "Ivan lives in Nice. Sara works for Ivan. Todd works for Judy. Judy lives in Split.",
        "Todd",
        ("Todd works for Judy.", "Judy lives in Split."),
        "Split",
    ),
    Shown(
        "Abel works for Rhea. Rhea lives in Essen.",
        "Abel",
        ("Abel works for Rhea.", "Rhea lives in Essen."),
        "Essen",
    ),
    Shown(
        "Carl works for Bea. Lars lives in Utrecht. Olga works for Lars. Bea lives in Tampa. Sven works for Greta. "
        "Greta lives in Aarhus.",
        "Olga",
        ("Olga works for Lars.", "Lars lives in Utrecht."),
        "Utrecht",
    ),
    Shown(
        "Selma lives in Siena. Cleo works for Ute. Ute lives in Bergen. Axel works for Selma.",
        "Axel",
        ("Axel works for Selma.", "Selma lives in Siena."),
        "Siena",
    ),
)

THING_RUNS = (
    Shown(
        "The golden harp belongs to Bea. Bea lives in Bern.",
        "the golden harp",
        ("The golden harp belongs to Bea.", "Bea lives in Bern."),
        "Bern",
    ),
    Shown(
        "Carl lives in Osaka. The purple vase belongs to Greta. The orange rug belongs to Carl. Greta lives in Turin.",
        "the purple vase",
        ("The purple vase belongs to Greta.", "Greta lives in Turin."),
        "Turin",
    ),
    Shown(
        "The copper bell belongs to Sven. Timo lives in Leeds. Rolf lives in Malmo. The wooden sled belongs to Rolf. "
        "Sven lives in Porto. The golden spoon belongs to Timo.",
        "the golden spoon",
        ("The golden spoon belongs to Timo.", "Timo lives in Leeds."),
        "Leeds",
    ),
    Shown(
        "The orange scarf belongs to Olga. The purple piano belongs to Milo. Milo lives in Basel. Olga lives in Miami.",
        "the orange scarf",
        ("The orange scarf belongs to Olga.", "Olga lives in Miami."),
        "Miami",
    ),
    Shown(
        "Dora lives in Lyon. The violet car belongs to Dora.",
        "the violet car",
        ("The violet car belongs to Dora.", "Dora lives in Lyon."),
        "Lyon",
    ),
    Shown(
        "Lars lives in Delft. The wooden flute belongs to Wanda. The copper pot belongs to Lars. Ulf lives in Cork. "
        "The purple hat belongs to Ulf. Wanda lives in Graz.",
        "the purple hat",
        ("The purple hat belongs to Ulf.", "Ulf lives in Cork."),
        "Cork",
    ),
    Shown(
        "The golden comb belongs to Jette. Ralf lives in Salta. The orange bike belongs to Ralf. Jette lives in Busan.",
        "the orange bike",
        ("The orange bike belongs to Ralf.", "Ralf lives in Salta."),
        "Salta",
    ),
    Shown(
        "Pia lives in Bonn. Joel lives in Kobe. The purple sofa belongs to Joel. The wooden bowl belongs to Kurt. "
        "The violet ball belongs to Pia. Kurt lives in Ghent.",
        "the wooden bowl",
        ("The wooden bowl belongs to Kurt.", "Kurt lives in Ghent."),
        "Ghent",
    ),
    Shown(
        "The violet stove belongs to Axel. The golden saw belongs to Tilda. Axel lives in Nice. Tilda lives in Split.",
        "the golden saw",
        ("The golden saw belongs to Tilda.", "Tilda lives in Split."),
        "Split",
    ),
    Shown(
        "The copper plate belongs to Gus. Gus lives in Essen.",
        "the copper plate",
        ("The copper plate belongs to Gus.", "Gus lives in Essen."),
        "Essen",
    ),
    Shown(
        "The purple desk belongs to Selma. Boris lives in Utrecht. Selma lives in Tampa. The "
        "orange fan belongs to Boris. "
        "The wooden cart belongs to Ute. Ute lives in Aarhus.",
        "the purple desk",
        ("The purple desk belongs to Selma.", "Selma lives in Tampa."),
        "Tampa",
    ),
    Shown(
        "Cleo lives in Siena. The golden fork belongs to Hedda. Hedda lives in Bergen. The "
        "violet coat belongs to Cleo.",
        "the violet coat",
        ("The violet coat belongs to Cleo.", "Cleo lives in Siena."),
        "Siena",
    ),
)

OWNER_RUNS = (
    Shown(
        "The golden harp belongs to Bea. Bea works for Carl. Carl lives in Bern.",
        "the golden harp",
        ("The golden harp belongs to Bea.", "Bea works for Carl.", "Carl lives in Bern."),
        "Bern",
    ),
    Shown(
        "Greta works for Sven. The purple vase belongs to Greta. Timo lives in Turin. The orange rug belongs to Rolf. "
        "Rolf works for Timo. Sven lives in Osaka.",
        "the orange rug",
        ("The orange rug belongs to Rolf.", "Rolf works for Timo.", "Timo lives in Turin."),
        "Turin",
    ),
    Shown(
        "Dora works for Lars. The copper bell belongs to Dora. Milo works for Olga. Lars lives in Leeds. Nils lives in "
        "Malmo. The wooden sled belongs to Milo. Olga lives in Porto. Wanda works for Nils. The violet car belongs to "
        "Wanda.",
        "the wooden sled",
        ("The wooden sled belongs to Milo.", "Milo works for Olga.", "Olga lives in Porto."),
        "Porto",
    ),
    Shown(
        "Ulf lives in Basel. Jette lives in Miami. Ralf works for Jette. The golden spoon belongs to Ralf. Britt works "
        "for Ulf. The orange scarf belongs to Britt.",
        "the golden spoon",
        ("The golden spoon belongs to Ralf.", "Ralf works for Jette.", "Jette lives in Miami."),
        "Miami",
    ),
    Shown(
        "Joel lives in Lyon. The purple piano belongs to Pia. Pia works for Joel.",
        "the purple piano",
        ("The purple piano belongs to Pia.", "Pia works for Joel.", "Joel lives in Lyon."),
        "Lyon",
    ),
    Shown(
        "The wooden flute belongs to Kurt. Kurt works for Axel. Tilda works for Selma. Selma lives in Graz. The copper "
        "pot belongs to Tilda. Axel lives in Cork.",
        "the wooden flute",
        ("The wooden flute belongs to Kurt.", "Kurt works for Axel.", "Axel lives in Cork."),
        "Cork",
    ),
    Shown(
        "Ute works for Cleo. Hedda works for Knut. The purple hat belongs to Ute. Knut lives in Salta. Cleo lives in "
        "Busan. The golden comb belongs to Hedda.",
        "the purple hat",
        ("The purple hat belongs to Ute.", "Ute works for Cleo.", "Cleo lives in Busan."),
        "Busan",
    ),
    Shown(
        "Liv lives in Bonn. Fritz lives in Kobe. The orange bike belongs to Mabel. Mabel works for Fritz. Ella works "
        "for Dirk. The violet ball belongs to Nora. Dirk lives in Ghent. Nora works for Liv. The purple sofa belongs "
        "to Ella.",
        "the violet ball",
        ("The violet ball belongs to Nora.", "Nora works for Liv.", "Liv lives in Bonn."),
        "Bonn",
    ),
    Shown(
        "Ivan lives in Nice. The wooden bowl belongs to Todd. Sara works for Ivan. Todd works for Judy. Judy lives in "
        "Split. The violet stove belongs to Sara.",
        "the wooden bowl",
        ("The wooden bowl belongs to Todd.", "Todd works for Judy.", "Judy lives in Split."),
        "Split",
    ),
    Shown(
        "Abel works for Rhea. Rhea lives in Essen. The golden saw belongs to Abel.",
        "the golden saw",
        ("The golden saw belongs to Abel.", "Abel works for Rhea.", "Rhea lives in Essen."),
        "Essen",
    ),
    Shown(
        "The copper plate belongs to Olga. Lars lives in Utrecht. Carl works for Bea. Olga "
        "works for Lars. Bea lives in "
        "Tampa. The purple desk belongs to Carl.",
        "the copper plate",
        ("The copper plate belongs to Olga.", "Olga works for Lars.", "Lars lives in Utrecht."),
        "Utrecht",
    ),
    Shown(
        "Selma lives in Siena. The orange fan belongs to Cleo. Cleo works for Ute. Ute lives "
        "in Bergen. The violet coat "
        "belongs to Axel. Axel works for Selma.",
        "the violet coat",
        ("The violet coat belongs to Axel.", "Axel works for Selma.", "Selma lives in Siena."),
        "Siena",
    ),
)
