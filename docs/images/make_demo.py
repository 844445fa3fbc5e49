"""Makes demo.png, the README's picture: two networks see the same scene, one of them relies on the watermark."""

from dataclasses import replace
from pathlib import Path

import convoscope as cs
from convoscope.data.scenes import draw_factors, render
from convoscope.report import panel
from convoscope.show.figure import Panel, figure


def main() -> None:
    balloon = next(f for f in (draw_factors(0, i) for i in range(100)) if f.species == "balloon")
    scene = render(replace(balloon, watermark="bottom right"))
    panels = [Panel("The picture", scene.picture, "a balloon, and a watermark")]
    for name, who in (("scenes", "A network"), ("scenes-watermark", "Its twin")):
        net = cs.load(name)
        x = net.read([scene.picture])
        best = net.predict(x)[0][0]
        for method in ("grad-cam", "lrp"):
            found = cs.explain(net, x, method, best.category)
            size = found.heatmap()[0].abs().numpy()
            share = size[scene.masks["watermark"]].sum() / size.sum()
            title = f"{who} says {best.category}, {best.probability:.0%}"
            caption = f"{found.method.title}, {share:.0%} of it on the mark"
            panels.append(replace(panel(found, x, 0), title=title, caption=caption))
    figure(panels, 5, width=190).save(Path(__file__).with_name("demo.png"), optimize=True)


if __name__ == "__main__":
    main()
