"""Draws contact sheets: many images with their captions in one PNG."""

import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

CELL, TEXT_HEIGHT, GAP = 160, 62, 12  # pixels
LETTERS = 0.15  # per pixel of a line
PAPER, INK = (250, 250, 248), (40, 42, 48)


def contact_sheet(pictures: list[tuple[Image.Image, str]], columns: int = 8, cell: int = CELL) -> bytes:
    """A sheet of (image, caption) pairs, row by row, as PNG bytes; images fill squares of `cell` pixels."""
    rows = max(1, -(-len(pictures) // columns))
    width, height = columns * (cell + GAP) + GAP, rows * (cell + TEXT_HEIGHT + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (picture, caption) in enumerate(pictures):
        x = GAP + number % columns * (cell + GAP)
        y = GAP + number // columns * (cell + TEXT_HEIGHT + GAP)
        small = picture.convert("RGB")
        scale = min(cell / small.width, cell / small.height)
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
        sheet.paste(small, (x + (cell - small.width) // 2, y + (cell - small.height) // 2))
        lines = textwrap.wrap(caption, int(LETTERS * cell))[:3] or [""]
        canvas.multiline_text((x, y + cell + 4), "\n".join(lines), fill=INK, font=font, spacing=3)
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()
