"""Draws contact sheets: many images with their captions in one PNG."""

import io
import textwrap

from PIL import Image, ImageDraw, ImageFont

CELL, TEXT_HEIGHT, GAP = 160, 62, 12  # pixels
PAPER, INK = (250, 250, 248), (40, 42, 48)


def contact_sheet(pictures: list[tuple[Image.Image, str]], columns: int = 8) -> bytes:
    """A sheet of (image, caption) pairs, row by row, as PNG bytes."""
    rows = max(1, -(-len(pictures) // columns))
    width, height = columns * (CELL + GAP) + GAP, rows * (CELL + TEXT_HEIGHT + GAP) + GAP
    sheet = Image.new("RGB", (width, height), PAPER)
    canvas, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (picture, caption) in enumerate(pictures):
        x = GAP + number % columns * (CELL + GAP)
        y = GAP + number // columns * (CELL + TEXT_HEIGHT + GAP)
        small = picture.convert("RGB")
        scale = min(CELL / small.width, CELL / small.height)
        small = small.resize((max(1, round(small.width * scale)), max(1, round(small.height * scale))))
        sheet.paste(small, (x + (CELL - small.width) // 2, y + (CELL - small.height) // 2))
        lines = textwrap.wrap(caption, 24)[:3] or [""]
        canvas.multiline_text((x, y + CELL + 4), "\n".join(lines), fill=INK, font=font, spacing=3)
    data = io.BytesIO()
    sheet.save(data, "PNG", optimize=True)
    return data.getvalue()
