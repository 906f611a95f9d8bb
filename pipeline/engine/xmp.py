"""XMP packets for image files: the IPTC mark of AI-made images, and Safelight's own parameters.

The mark is IPTC's property `DigitalSourceType` (IPTC Photo Metadata Standard 2025.1) with the term
`trainedAlgorithmicMedia`: created by a model from training data. An edited image has
`compositeWithTrainedAlgorithmicMedia`: edited by such a model, by inpainting for instance.
"""

import hashlib
from xml.sax.saxutils import escape

SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
AI_MARK = SOURCE_TYPES + "trainedAlgorithmicMedia"
EDIT_MARK = SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"
PNG_KEYWORD = "XML:com.adobe.xmp"
NAMESPACES = {
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "safelight": "urn:safelight:1.0/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
}
# The most bytes of a packet in one segment of a JPEG file, and of a part of a longer one.
MAX_JPEG_PACKET = 65_502
MAX_EXTENSION_PART = 65_400
EXTENSION_HEADER = b"http://ns.adobe.com/xmp/extension/\0"


def packet(mark: str | None, parameters: str | None = None) -> bytes:
    """An XMP packet, empty without a mark and `parameters`.

    Args:
        mark: The mark of AI-made images that it holds, `AI_MARK` or `EDIT_MARK`.
        parameters: The generation parameters as JSON.
    """
    properties = {} if mark is None else {"Iptc4xmpExt:DigitalSourceType": mark}
    if parameters is not None:
        properties["safelight:parameters"] = parameters
    if not properties:
        return b""
    marks = '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>', '<?xpacket end="w"?>'
    return "".join((marks[0], _document(properties), marks[1])).encode()


def jpeg_segments(mark: str | None, parameters: str) -> tuple[bytes, bytes]:
    """A packet for a JPEG file, and the segments that hold what does not fit into it.

    Adobe's XMP specification, part 3, 1.1.3.1: a long property moves to a second document, in parts, and the
    packet holds the digest of that document.
    """
    whole = packet(mark, parameters)
    if len(whole) <= MAX_JPEG_PACKET:
        return whole, b""
    extension = _document({"safelight:parameters": parameters}).encode()
    digest = hashlib.md5(extension, usedforsecurity=False).hexdigest().upper()
    properties = {"xmpNote:HasExtendedXMP": digest}
    if mark is not None:
        properties["Iptc4xmpExt:DigitalSourceType"] = mark
    segments = bytearray()
    for offset in range(0, len(extension), MAX_EXTENSION_PART):
        part = extension[offset : offset + MAX_EXTENSION_PART]
        place = len(extension).to_bytes(4, "big") + offset.to_bytes(4, "big")
        body = EXTENSION_HEADER + digest.encode() + place + part
        segments += b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body
    return _document(properties).encode(), bytes(segments)


def _document(properties: dict[str, str]) -> str:
    """An RDF document with `properties` by their prefixed names."""
    prefixes = dict.fromkeys(name.partition(":")[0] for name in properties)
    namespaces = "".join(f' xmlns:{prefix}="{NAMESPACES[prefix]}"' for prefix in prefixes)
    elements = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in properties.items())
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        f'<rdf:Description rdf:about=""{namespaces}>{elements}</rdf:Description>'
        "</rdf:RDF></x:xmpmeta>"
    )
