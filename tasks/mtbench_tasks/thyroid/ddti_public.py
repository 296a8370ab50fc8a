"""The split of DDTI that the ThyroidBench repository publishes (MIT licence), by case number.

Of its 466 images 336 are for training, 65 for validation and 65 for the test, no case in two parts.
Cases that it does not name train.
"""

# fmt: off
VAL = frozenset((
    2, 3, 11, 15, 36, 40, 48, 53, 56, 57, 74, 77, 102, 103, 118, 119, 122, 126, 136, 138, 140, 144,
    162, 168, 175, 182, 188, 192, 194, 198, 206, 210, 215, 225, 235, 241, 250, 261, 270, 277, 284,
    286, 291, 295, 300, 309, 321, 323, 326, 332, 342, 345, 350, 357, 362, 370, 400,
))
TEST = frozenset((
    9, 14, 21, 23, 24, 26, 39, 41, 50, 62, 70, 75, 80, 87, 90, 98, 104, 148, 149, 151, 155, 169,
    187, 193, 200, 216, 221, 226, 227, 232, 236, 239, 240, 243, 248, 254, 256, 260, 273, 275, 279,
    290, 298, 299, 307, 314, 320, 338, 341, 346, 364, 366, 372, 374, 380, 383, 399,
))
