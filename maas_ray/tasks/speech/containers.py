"""Files of sound that are not whole, or do not say how long they are; libsndfile reads a part of them in silence."""

from maas_ray.errors import InvalidError

_STREAMED = 0x7FFF_0000  # sizes from here on are what programs write that do not know the size yet
_TOLERANCE = 4  # frames of MP3: encoders count their own delay and the frame of the header differently

# Bit rates of layer III in kbit/s by their index, for MPEG 1 and for MPEG 2 and 2.5; 0: free format, -1: invalid.
_BIT_RATES = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, -1),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160, -1),
)
_RATES = (44_100, 48_000, 32_000)
_HEADER_RATE = 8  # the index of a bit rate whose frames have room for the header `Xing`


def check_whole_wav(content: bytes) -> None:
    """Return if a WAV file holds as many bytes of sound as it announces, or does not announce any.

    Raises:
        InvalidError: it was cut off.
    """
    at = 12
    while content[:4] == b"RIFF" and at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        if content[at : at + 4] == b"data":
            if len(content) - at - 8 < size < _STREAMED:
                raise InvalidError("truncated_audio", "the file was cut off: it holds less sound than its header says")
            return
        at += 8 + size + size % 2


def check_whole_mp3(content: bytes, samples: int) -> None:
    """Return if an MP3 file holds as many samples as libsndfile takes from its header.

    Raises:
        InvalidError: it was cut off.
    """
    frames, length = _frames(content)
    if frames and samples > (frames + _TOLERANCE) * length:
        raise InvalidError("truncated_audio", "the file was cut off: it holds less sound than its header says")


def with_length(content: bytes, samples: int) -> bytes:
    """An MP3 file that says how long it is: libsndfile guesses from the first bit rate, and reads no further.

    Args:
        content: the file.
        samples: the length that libsndfile takes it to have.
    """
    frames, length = _frames(content)
    if samples + _TOLERANCE * length >= frames * length:
        return content
    first = _next_frame(content)
    header = bytearray(content[first : first + 4])
    header[1] |= 1  # without a checksum
    header[2] = _HEADER_RATE << 4 | (header[2] & 0x0C)  # without padding
    mono, version_1 = header[3] >> 6 == 3, header[1] >> 3 & 3 == 3
    side = (17 if mono else 32) if version_1 else (9 if mono else 17)
    body = bytes(side) + b"Xing" + (1).to_bytes(4, "big") + frames.to_bytes(4, "big")
    size, _ = _size(bytes(header))
    return bytes(header) + body.ljust(size - 4, b"\0") + content[first:]


def _next_frame(content: bytes, at: int = 0) -> int:
    """The position of the next frame: behind a tag of ID3, and before another frame or the end."""
    if at == 0 and content[:3] == b"ID3":
        tag = content[6:10]
        at = 10 + (tag[0] << 21 | tag[1] << 14 | tag[2] << 7 | tag[3])
    while 0 <= (at := content.find(b"\xff", at)) < len(content) - 4:
        size, _ = _size(content[at : at + 4])
        if size and (at + size >= len(content) or _size(content[at + size : at + size + 4])[0]):
            return at
        at += 1
    return len(content)


def _frames(content: bytes) -> tuple[int, int]:
    """The number of whole frames of layer III, and the samples of a frame. (0, 0): the file cannot be measured."""
    count, length, at = 0, 0, _next_frame(content)
    while at + 4 <= len(content):
        size, samples = _size(content[at : at + 4])
        if size:
            count, length, at = count + (at + size <= len(content)), samples, at + size
        else:  # damage, or a tag
            at = _next_frame(content, at + 1)
    return count, length


def _size(header: bytes) -> tuple[int, int]:
    """The bytes and samples of the frame of a header. (0, 0): it is not a header of layer III."""
    if len(header) < 4 or header[0] != 0xFF or header[1] & 0xE6 != 0xE2:
        return 0, 0
    version, rate, padding = header[1] >> 3 & 3, header[2] >> 2 & 3, header[2] >> 1 & 1
    if version == 1 or rate == 3:
        return 0, 0
    bits = _BIT_RATES[version != 3][header[2] >> 4]
    if bits <= 0:
        return 0, 0
    hertz = _RATES[rate] >> {3: 0, 2: 1, 0: 2}[version]
    samples = 1152 if version == 3 else 576
    return samples // 8 * bits * 1000 // hertz + padding, samples
