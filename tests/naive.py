"""The first half of the line, one image at a time and as plainly as it can be written.

Boxes by torchvision's rule with Python's integers and `math`, crops by Pillow, one image before the observer at once, sorted lists, pasting. The tests hold the
package to this; it shares nothing with it but the data set and the observer.
"""
import hashlib
import math

import numpy as np
import torch
from PIL import Image

MASK = 2 ** 64 - 1


def hash64(*parts): return int.from_bytes(hashlib.blake2b('\x1f'.join(map(str, parts)).encode(), digest_size=8).digest(), 'big')


def splitmix(state):
    "One output of SplitMix64 for a state that has just been advanced."
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & MASK
    return state ^ (state >> 31)


def uniform(key, *counter):
    for c in counter: key = splitmix((key + (c + 1) * 0x9E3779B97F4A7C15) & MASK)
    return (key >> 11) / 2 ** 53


def box_of(key, height, width, crop, scale=(0.08, 1.0), ratio=(1, 1)):
    "torchvision.transforms.RandomResizedCrop.get_params, with numbered draws in place of a generator."
    for attempt in range(10):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * uniform(key, crop, attempt, 0))
        aspect = math.exp(math.log(ratio[0]) + uniform(key, crop, attempt, 1) * math.log(ratio[1] / ratio[0]))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return math.floor(uniform(key, crop, attempt, 2) * (height - h + 1)), math.floor(uniform(key, crop, attempt, 3) * (width - w + 1)), h, w
    if width / height < ratio[0]: w, h = width, round(width / ratio[0])
    elif width / height > ratio[1]: w, h = round(height * ratio[1]), height
    else: w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


def cut(img, box, size):
    top, left, height, width = box
    return img.crop((left, top, left + width, top + height)).resize((size, size), Image.BILINEAR)


def shown(patch, size, canvas, mean):
    "A PIL patch as the observer sees it: float [1,3,size,size]."
    x = torch.from_numpy(np.array(patch)).permute(2, 0, 1)[None] / 255
    if patch.width == size: return x
    if canvas == 'enlarge': return torch.nn.functional.interpolate(x, size=(size, size), mode='bilinear')
    out = torch.empty(1, 3, size, size)
    for c in range(3): out[:, c] = float(mean[c])
    start = (size - patch.width) // 2
    out[:, :, start:start + patch.height, start:start + patch.width] = x
    return out


def realism(logits, label):
    z = [float(v) for v in logits]
    return z[label] - max(z) - math.log(sum(math.exp(v - max(z)) for v in z))


def draw(images, label, preselect, seed):
    mine = [i for i in range(len(images)) if int(images.y[i]) == label]
    return sorted(mine, key=lambda i: hash64(seed, images.ids[i]))[:preselect]


def candidates(images, observer, label, *, size, factor, preselect, crops, canvas, seed):
    "For each drawn image of a class: (score, identity, crop, index, box) of its best crop."
    found = []
    for i in draw(images, label, preselect, seed):
        img, best = images.image(i), None
        for k in range(crops):
            box = box_of(hash64(seed, images.ids[i]), img.height, img.width, k)
            patch = cut(img, box, math.ceil(size / factor))
            score = realism(observer.logits(shown(patch, size, canvas, observer.mean))[0], label)
            if best is None or score > best[0]: best = (score, images.ids[i], k, i, box)
        found.append(best)
    return found


def mosaic(images, chosen, size, factor):
    "Paste the chosen candidates of one image, row by row; factor must divide size."
    out, cell = Image.new('RGB', (size, size)), size // factor
    for k, (_, _, _, i, box) in enumerate(chosen): out.paste(cut(images.image(i), box, cell), (k % factor * cell, k // factor * cell))
    return out


def distill(images, observer, *, size, factor, ipc, preselect, crops=5, canvas='mean', seed=0):
    "[(label, candidates of the cells, PIL image) …], class by class."
    made = []
    for label in range(len(images.classes)):
        ranked = sorted(candidates(images, observer, label, size=size, factor=factor, preselect=preselect, crops=crops, canvas=canvas, seed=seed),
                        key=lambda c: (-c[0], c[1]))
        for j in range(ipc):
            chosen = [ranked[k * ipc + j] for k in range(factor ** 2)]
            made.append((label, chosen, mosaic(images, chosen, size, factor)))
    return made


class NearestMean:
    "An observer that needs no training: minus the squared distance to the mean whole image of each class."
    def __init__(self, images, size, per_class=50):
        self.classes, self.size, self.name, self.arch, self.sha256, self.top1 = images.classes, size, 'nearest-mean', 'nearest-mean', None, None
        self.means = torch.stack([self._mean(images, c, per_class) for c in range(len(images.classes))])
        self.mean = self.means.mean((0, 2, 3))

    def _mean(self, images, label, n):
        return torch.stack([torch.from_numpy(np.array(images.image(i).resize((self.size, self.size)))) / 255
                            for i in images.of_class(label)[:n].tolist()]).mean(0).permute(2, 0, 1)

    def logits(self, x):
        x = x / 255 if x.dtype == torch.uint8 else x
        return -(x[:, None] - self.means).square().sum((-3, -2, -1)) / 4
