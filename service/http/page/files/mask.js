// Painting a mask over an image, with a pointer or with keys.

const OPAQUE = 255;

/** A canvas that shows an image and the mask that is painted over it. */
export class MaskPainter {
  /** `onChange(share)` gets the painted share of the image, 0 to 1. */
  constructor(canvas, onChange) {
    this.canvas = canvas;
    this.onChange = onChange;
    this.image = null;
    this.layer = new OffscreenCanvas(1, 1);
    this.layer.getContext("2d", { willReadFrequently: true });
    this.hatching = new OffscreenCanvas(1, 1);
    this.strokes = [];
    this.share = 0; // of the image that is painted
    this.erases = false;
    this.size = 0.14; // of the image's longer side
    this.cursor = null; // of the keyboard's brush
    canvas.addEventListener("pointerdown", (event) => this.#begin(event));
    canvas.addEventListener("pointermove", (event) => this.#move(event));
    for (const type of ["pointerup", "pointercancel"]) canvas.addEventListener(type, () => this.#end());
    canvas.addEventListener("keydown", (event) => this.#press(event));
    canvas.addEventListener("blur", () => this.#moveCursor(null));
  }

  /** Shows `bitmap` with nothing painted. */
  open(bitmap) {
    this.image = bitmap;
    for (const canvas of [this.canvas, this.layer, this.hatching]) {
      canvas.width = bitmap.width;
      canvas.height = bitmap.height;
    }
    this.clear();
  }

  clear() {
    this.strokes = [];
    this.#repaint();
  }

  undo() {
    this.strokes.pop();
    this.#repaint();
  }

  /** The image as a PNG file, upright and without metadata. */
  async imageBlob() {
    const canvas = new OffscreenCanvas(this.image.width, this.image.height);
    canvas.getContext("2d").drawImage(this.image, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  /** The mask as a PNG file, transparent where something was painted; null if nothing was. */
  async maskBlob() {
    const { width, height } = this.layer;
    const painted = this.layer.getContext("2d").getImageData(0, 0, width, height);
    if (shareOf(painted) === 0) return null;
    for (let i = 0; i < painted.data.length; i += 4) {
      painted.data.fill(0, i, i + 3);
      painted.data[i + 3] = isPainted(painted, i) ? 0 : OPAQUE;
    }
    const canvas = new OffscreenCanvas(width, height);
    canvas.getContext("2d").putImageData(painted, 0, 0);
    return canvas.convertToBlob({ type: "image/png" });
  }

  get #radius() {
    return (this.size * Math.max(this.layer.width, this.layer.height)) / 2;
  }

  #begin(event) {
    if (!this.image || event.button !== 0) return;
    this.canvas.setPointerCapture(event.pointerId);
    this.cursor = null;
    this.stroke = { radius: this.#radius, erases: this.erases, points: [] };
    this.strokes.push(this.stroke);
    this.#move(event);
  }

  #move(event) {
    if (!this.stroke) return;
    this.stroke.points.push(this.#pointOf(event));
    this.#paint(this.stroke);
    this.#show();
  }

  /** Where in the image a pointer is. The canvas has a border, and an image with another aspect in its middle. */
  #pointOf({ clientX, clientY }) {
    const { left, top } = this.canvas.getBoundingClientRect();
    const { clientLeft, clientTop, clientWidth, clientHeight } = this.canvas;
    const { width, height } = this.layer;
    const scale = Math.min(clientWidth / width, clientHeight / height);
    return [
      (clientX - left - clientLeft - clientWidth / 2) / scale + width / 2,
      (clientY - top - clientTop - clientHeight / 2) / scale + height / 2,
    ];
  }

  #end() {
    if (!this.stroke) return;
    this.stroke = null;
    this.#report();
  }

  #press(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const move = moves[event.key];
    if (!this.image || (!move && event.key !== " ")) return;
    event.preventDefault();
    const { width, height } = this.layer;
    const [x, y] = this.cursor ?? [width / 2, height / 2];
    if (move) {
      const step = this.#radius;
      this.#moveCursor([clamp(x + move[0] * step, width), clamp(y + move[1] * step, height)]);
    }
    if (event.key === " " || event.shiftKey) {
      this.strokes.push({ radius: this.#radius, erases: this.erases, points: [this.cursor ?? [x, y]] });
      this.cursor ??= [x, y];
      this.#repaint();
    }
  }

  #moveCursor(cursor) {
    this.cursor = cursor;
    if (this.image) this.#show();
  }

  #repaint() {
    this.layer.getContext("2d").clearRect(0, 0, this.layer.width, this.layer.height);
    this.strokes.forEach((stroke) => this.#paint(stroke));
    this.#show();
    this.#report();
  }

  #paint({ radius, erases, points }) {
    const context = this.layer.getContext("2d");
    context.globalCompositeOperation = erases ? "destination-out" : "source-over";
    context.strokeStyle = "#e8301a";
    context.lineWidth = 2 * radius;
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(points[0][0] - 0.01, points[0][1]); // a line without length is not drawn
    points.forEach((point) => context.lineTo(...point));
    context.stroke();
  }

  #show() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, this.canvas.width, this.canvas.height); // the image may be transparent
    context.drawImage(this.image, 0, 0);
    context.globalAlpha = 0.8;
    context.drawImage(this.#hatch(), 0, 0);
    context.globalAlpha = 1;
    if (this.cursor) this.#showCursor(context);
  }

  // What is painted, in stripes of two colours: one of them is seen on any image.
  #hatch() {
    const { width, height } = this.hatching;
    const context = this.hatching.getContext("2d");
    context.globalCompositeOperation = "copy";
    context.drawImage(this.layer, 0, 0);
    context.globalCompositeOperation = "source-atop";
    context.strokeStyle = "#fff3ec";
    context.lineWidth = Math.max(width, height) / 90;
    context.beginPath();
    for (let x = -height; x < width; x += 4 * context.lineWidth) {
      context.moveTo(x, 0);
      context.lineTo(x + height, height);
    }
    context.stroke();
    return this.hatching;
  }

  #showCursor(context) {
    for (const [width, style] of [[0.012, "#ffffff"], [0.006, "#000000"]]) {
      context.lineWidth = Math.max(1, width * this.layer.width);
      context.strokeStyle = style;
      context.beginPath();
      context.arc(...this.cursor, this.#radius, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  #report() {
    const { width, height } = this.layer;
    this.share = shareOf(this.layer.getContext("2d").getImageData(0, 0, width, height));
    this.onChange(this.share);
  }
}

function shareOf(pixels) {
  let painted = 0;
  for (let i = 0; i < pixels.data.length; i += 4) if (isPainted(pixels, i)) painted += 1;
  return (4 * painted) / pixels.data.length;
}

// A stroke's edge is smooth on the screen; in the mask a pixel is painted or not.
function isPainted(pixels, i) {
  return pixels.data[i + 3] > OPAQUE / 2;
}

function clamp(value, most) {
  return Math.min(Math.max(value, 0), most);
}
