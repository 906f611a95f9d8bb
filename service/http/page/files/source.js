// The image that an edit starts from: chosen, dropped or pasted, and the mask painted over it.

import { byId } from "./dom.js";
import { MaskPainter } from "./mask.js";

// The service's defaults, which it chooses by whether there is a mask; they are shown, not sent.
const STRENGTH = 0.6;
const INPAINTING_STRENGTH = 1;

export class SourceImage {
  /** `onChange()` is called after each change, `onFault(message)` for a file that is no image. */
  constructor(onChange, onFault) {
    this.onChange = onChange;
    this.onFault = onFault;
    this.longestSide = Infinity;
    this.strength = null;
    this.painter = new MaskPainter(byId("mask"), (share) => this.#showShare(share));
    byId("file").addEventListener("change", (event) => {
      if (event.target.files[0]) this.open(event.target.files[0]);
      event.target.value = ""; // so that the same file can be chosen again
    });
    byId("undo").addEventListener("click", () => this.painter.undo());
    byId("clear").addEventListener("click", () => this.painter.clear());
    byId("replace").addEventListener("click", () => this.close());
    byId("strength").addEventListener("input", (event) => this.#setStrength(Number(event.target.value)));
    byId("brush-size").addEventListener("input", (event) => (this.painter.size = event.target.value / 100));
    for (const input of document.getElementsByName("brush")) {
      input.addEventListener("change", () => (this.painter.erases = input.value === "erase" && input.checked));
    }
    this.#acceptDrops();
  }

  /** Opens an image file; a larger one than the model can use is made smaller. */
  async open(blob) {
    try {
      const bitmap = await createImageBitmap(blob); // upright: the orientation of a photograph is applied
      const scale = Math.min(1, this.longestSide / Math.max(bitmap.width, bitmap.height));
      const [resizeWidth, resizeHeight] = [bitmap.width, bitmap.height].map((side) =>
        Math.max(1, Math.round(side * scale)));
      const options = { resizeWidth, resizeHeight, resizeQuality: "high" };
      this.painter.open(scale < 1 ? await createImageBitmap(bitmap, options) : bitmap);
    } catch {
      this.onFault("This file is not an image that the browser can read.");
      return;
    }
    this.#setStrength(null);
    byId("painting").hidden = false;
    byId("drop").hidden = true;
    this.onChange();
  }

  close() {
    this.painter.image = null;
    byId("painting").hidden = true;
    byId("drop").hidden = false;
    byId("file").focus();
    this.onChange();
  }

  get isOpen() {
    return this.painter.image !== null;
  }

  /** Sets what is sent; null leaves it to the service. */
  #setStrength(strength) {
    this.strength = strength;
    this.#showStrength();
  }

  #showStrength() {
    const strength = this.strength ?? (this.painter.share ? INPAINTING_STRENGTH : STRENGTH);
    byId("strength").value = strength;
    byId("strength-value").value = strength.toFixed(2);
  }

  /** The files of an edit; its mask is null if nothing is painted. */
  async files() {
    const [image, mask] = await Promise.all([this.painter.imageBlob(), this.painter.maskBlob()]);
    return { image, mask };
  }

  #showShare(share) {
    const percent = share > 0 && share < 0.01 ? "Less than 1" : Math.round(100 * share);
    const text = share ? `${percent} % of the image is drawn anew.` : "Nothing painted: the whole image changes.";
    byId("mask-share").textContent = text;
    this.#showStrength();
    this.onChange();
  }

  #acceptDrops() {
    const area = byId("source");
    area.addEventListener("dragover", (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
    area.addEventListener("dragleave", () => area.classList.remove("over"));
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      area.classList.remove("over");
      if (event.dataTransfer.files[0]) this.open(event.dataTransfer.files[0]);
    });
    document.addEventListener("paste", (event) => {
      if (!area.hidden && event.clipboardData.files[0]) this.open(event.clipboardData.files[0]);
    });
  }
}
