"""Make pumps.csv beside this file: `python configs/tabular/make_pumps.py`.

600 invented readings of pumps, with the fault that was found later. The classes depend on products and thresholds of
the columns, so a linear model does worse than a small network; a tenth of the rows is labelled at random, and some
values are missing, as in real tables.
"""

import csv
import io
import math
import random
from pathlib import Path

ROWS = 600
COLUMNS = ("temperature", "vibration", "pressure", "hours", "maker", "site", "fault")


def make_csv(seed: int = 7) -> str:
    """Return the text of the file, the same for the same seed on every machine."""
    rng = random.Random(seed)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for _ in range(ROWS):
        temperature, pressure = rng.gauss(62, 9), rng.gauss(5.5, 1.1)
        vibration, hours = math.exp(rng.gauss(0.4, 0.5)), rng.expovariate(1 / 3000)
        maker, site = rng.choice(("Arno", "Brenta", "Calder", "Dee")), rng.choice(("north", "south", "quay"))
        worn = 0.9 * math.log1p(hours / 2000) * vibration + (0.9 if maker == "Dee" else 0.0)
        leak = ((temperature - 62) / 9) * ((pressure - 5.5) / 1.1) + (
            1.1 if maker == "Arno" and site == "quay" else 0.0
        )
        fault = "bearing" if worn > 1.7 and worn > leak + 0.6 else "seal" if leak > 0.5 else "none"
        if rng.random() < 0.1:
            fault = rng.choice(("none", "bearing", "seal"))
        row = [f"{temperature:.1f}", f"{vibration:.2f}", f"{pressure:.2f}", f"{hours:.0f}", maker, site, fault]
        for column, chance in ((1, 0.04), (2, 0.02), (4, 0.02), (6, 0.01)):
            if rng.random() < chance:
                row[column] = ""
        writer.writerow(row)
    return out.getvalue()


if __name__ == "__main__":
    Path(__file__).with_name("pumps.csv").write_text(make_csv(), encoding="utf-8")
