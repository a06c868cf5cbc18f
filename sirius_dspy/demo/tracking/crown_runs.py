"""Runs of the crown written by hand, with names that the generator does not have."""

from __future__ import annotations

from sirius_dspy.demo.tracking.task import Shown

_QUESTION = "Who has the crown at the end?"


def _run(start: str, *told: tuple[str, str, str]) -> Shown:
    return Shown(start, _QUESTION, told)


CROWN_RUNS = (
    _run(
        "Bea",
        ("Then Bea swaps hands with Carl.", "Bea swaps hands with Carl.", "Carl"),
    ),
    _run(
        "Olga",
        ("Sven swaps hands with Nils, and they hum.", "Sven swaps hands with Nils.", "Olga"),
    ),
    _run(
        "Greta",
        ("Later Greta swaps hands with Timo. Rolf is late.", "Greta swaps hands with Timo.", "Timo"),
        ("Rolf swaps hands with Timo.", "Rolf swaps hands with Timo.", "Rolf"),
    ),
    _run(
        "Milo",
        ("Dora sneezes. Milo swaps hands with Lars.", "Milo swaps hands with Lars.", "Lars"),
        ("At night Dora swaps hands with Milo.", "Dora swaps hands with Milo.", "Lars"),
        ("Dora swaps hands with Lars by the well.", "Dora swaps hands with Lars.", "Dora"),
    ),
    _run(
        "Wanda",
        ("Ulf swaps hands with Wanda.", "Ulf swaps hands with Wanda.", "Ulf"),
    ),
    _run(
        "Jette",
        ("At dawn Ralf swaps hands with Britt. Jette yawns.", "Ralf swaps hands with Britt.", "Jette"),
    ),
    _run(
        "Pia",
        ("After tea Joel swaps hands with Pia.", "Joel swaps hands with Pia.", "Joel"),
        ("Kurt swaps hands with Pia, and Joel nods.", "Kurt swaps hands with Pia.", "Joel"),
    ),
    _run(
        "Axel",
        ("Birds sing. Then Axel swaps hands with Tilda.", "Axel swaps hands with Tilda.", "Tilda"),
        ("Tilda swaps hands with Gus.", "Tilda swaps hands with Gus.", "Gus"),
    ),
    _run(
        "Selma",
        ("Selma swaps hands with Boris, as before.", "Selma swaps hands with Boris.", "Boris"),
        ("Ute runs off. Cleo swaps hands with Ute.", "Cleo swaps hands with Ute.", "Boris"),
        ("In the yard Boris swaps hands with Cleo.", "Boris swaps hands with Cleo.", "Cleo"),
    ),
    _run(
        "Hedda",
        ("At home Knut swaps hands with Liv. Hedda reads.", "Knut swaps hands with Liv.", "Hedda"),
        ("Liv swaps hands with Hedda.", "Liv swaps hands with Hedda.", "Liv"),
    ),
    _run(
        "Fritz",
        ("Soon Fritz swaps hands with Mabel, and he blushes.", "Fritz swaps hands with Mabel.", "Mabel"),
    ),
    _run(
        "Nora",
        ("Ella claps. At last Dirk swaps hands with Nora.", "Dirk swaps hands with Nora.", "Dirk"),
    ),
    _run(
        "Ivan",
        ("Sara swaps hands with Ivan in the snow.", "Sara swaps hands with Ivan.", "Sara"),
        ("Then Sara swaps hands with Ivan again.", "Sara swaps hands with Ivan.", "Ivan"),
        ("Sara swaps hands with Todd. Ivan winks.", "Sara swaps hands with Todd.", "Ivan"),
    ),
    _run(
        "Judy",
        ("On the bus Judy swaps hands with Abel.", "Judy swaps hands with Abel.", "Abel"),
        ("Abel coughs. Judy swaps hands with Rhea.", "Judy swaps hands with Rhea.", "Abel"),
    ),
)
