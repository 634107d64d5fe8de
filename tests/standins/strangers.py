"""Models that no adapter knows, as a laboratory would write them for itself."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import nn

WIDTH, HEADS, STEPS = 16, 2, 3


def pixels(images):
    """[row, channel, y, x] of one or several pictures."""
    images = images if isinstance(images, list) else [images]
    return torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255 for image in images])


def noise(generators, shape):
    generators = generators if isinstance(generators, list) else [generators]
    return torch.cat([torch.randn(1, *shape, generator=each) for each in generators])


def pictures(latents):
    return SimpleNamespace(images=list(latents[:, :3].sigmoid().permute(0, 2, 3, 1).numpy()))


class Eye(nn.Module):
    """An encoder of its own: patches of eight pixels, and a token for the whole."""

    def __init__(self):
        super().__init__()
        self.patches, self.whole = nn.Conv2d(3, WIDTH, 8, 8), nn.Parameter(torch.randn(1, 1, WIDTH))

    def forward(self, picture):
        tokens = self.patches(picture).flatten(2).transpose(1, 2)
        return torch.cat([self.whole.expand(len(tokens), -1, -1), tokens], 1)


class Weave(nn.Module):
    """Generated tokens, behind two registers, look at two pictures, at words between those of the second."""

    def __init__(self):
        super().__init__()
        self.to_q, self.to_k, self.to_v, self.back = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.registers = nn.Parameter(torch.randn(1, 2, WIDTH))

    def forward(self, cloth, first, second, caption):
        woven = torch.stack([second, caption], 2).flatten(1, 2)
        keys = torch.cat([first, woven, cloth], 1)
        queries = torch.cat([self.registers.expand(len(cloth), -1, -1), cloth], 1)
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for x in (self.to_q(queries), self.to_k(keys), self.to_v(keys))
        )
        F.scaled_dot_product_attention(q, q, q)  # one that is not meant
        mixed = F.scaled_dot_product_attention(q, k, v, scale=0.2).transpose(1, 2).flatten(2)
        return self.back(mixed)[:, 2:]


class Row(nn.Module):
    def __init__(self):
        super().__init__()
        self.even, self.weave = nn.LayerNorm(WIDTH), Weave()

    def forward(self, cloth, **seen):
        return cloth + self.weave(self.even(cloth), **seen)


class Loom(nn.Module):
    def __init__(self):
        super().__init__()
        self.thread, self.rows = nn.Conv2d(4, WIDTH, 2, 2), nn.ModuleList(Row() for _ in range(2))
        self.finish = nn.Linear(WIDTH, 16)

    def forward(self, when, cloth, views, caption):
        height, width = cloth.shape[-2:]
        stream = self.thread(cloth).flatten(2).transpose(1, 2) * (1 + when[:, None, None])
        for row in self.rows:
            stream = row(stream, first=views[0], second=views[1], caption=caption)
        out = self.finish(stream).transpose(1, 2).unflatten(2, (height // 2, width // 2))
        return F.pixel_shuffle(out, 2)


class Weaver:
    """Guidance as [uncond, cond] rows; a schedule of its own, of which the denoiser sees a thousandth."""

    def __init__(self):
        torch.manual_seed(0)
        self.engine = SimpleNamespace(loom=Loom().eval(), eye=Eye().eval(), levels=[900.0, 500.0, 100.0])
        self.sentence = torch.randn(1, 9, WIDTH)

    @torch.no_grad()
    def __call__(self, left, right, generator, size=(8, 12), guidance=2.0):
        loom, eye = self.engine.loom, self.engine.eye
        views = [eye(pixels(each)) for each in (left, right)]
        cloth = noise(generator, (4, *size))
        caption = self.sentence.expand(len(cloth), -1, -1)
        guided = guidance > 1
        if guided:
            views = [torch.cat([torch.zeros_like(view), view]) for view in views]
            caption = torch.cat([torch.zeros_like(caption), caption])
        for level in self.engine.levels:
            rows = torch.cat([cloth, cloth]) if guided else cloth
            out = loom(torch.full((len(rows),), level / 1000), rows, views, caption)
            if guided:
                without, given = out.chunk(2)
                out = without + guidance * (given - without)
            cloth = cloth - 0.3 * out
        return pictures(cloth)


class Look(nn.Module):
    """Cross attention from a feature map to a garment's feature map."""

    def __init__(self):
        super().__init__()
        self.ask, self.offer, self.give = (nn.Conv2d(WIDTH, WIDTH, 1) for _ in range(3))

    def forward(self, features, garment):
        q, k, v = (
            x.flatten(2).unflatten(1, (HEADS, -1)).transpose(2, 3)
            for x in (self.ask(features), self.offer(garment), self.give(garment))
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2).view_as(features)


class Own(Look):
    """The same, of a feature map to itself."""

    def forward(self, features):
        return super().forward(features, features)


class Core(nn.Module):
    """Two resolutions, each with self attention and a look at the garment."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Conv2d(4, WIDTH, 1), nn.Conv2d(WIDTH, 4, 1)
        self.own, self.look = (nn.ModuleList(kind() for _ in range(2)) for kind in (Own, Look))

    def forward(self, sample, t, garment):
        fine = self.enter(sample) * (1 + t / 1000)
        fine = fine + self.look[0](self.own[0](fine), garment)
        coarse = F.avg_pool2d(fine, 2)
        coarse = coarse + self.look[1](self.own[1](coarse), garment)
        return self.leave(fine + F.interpolate(coarse, scale_factor=2))


class Tailor(nn.Module):
    """Guidance in calls of their own, the unconditional one first."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.core, self.fabric = Core(), nn.Conv2d(3, WIDTH, 4, 4)
        self.scheduler = DDIMScheduler()
        self.eval()

    @torch.no_grad()
    def forward(self, garment, generator, guidance=2.0, size=(8, 8)):
        seen, sample = self.fabric(pixels(garment)), noise(generator, (4, *size))
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            given = [torch.zeros_like(seen), seen] if guidance > 1 else [seen]
            out = [self.core(sample, t, garment=each) for each in given]
            out = out[0] + guidance * (out[1] - out[0]) if guidance > 1 else out[0]
            sample = self.scheduler.step(out, t, sample).prev_sample
        return pictures(sample)


def weaver():
    """A pipeline and its call, as i2am probe takes them."""
    from tests.pipeline.models import picture

    def call(pipe):
        pipe(picture(1, 32, 32), picture(2, 16, 32), torch.Generator().manual_seed(0))

    return Weaver(), call


def tailor(device, dtype):
    return Tailor()


def try_on(pipe):
    from tests.pipeline.models import picture

    pipe(picture(1, 24, 16), torch.Generator().manual_seed(0))


def broken():
    return Tailor(), lambda pipe: pipe(garment=None, generator=None)


class Voice(nn.Module):
    """Norm of the picture's own tokens, then attention over picture, reference and words at once."""

    def __init__(self):
        super().__init__()
        self.norm, self.sing = nn.LayerNorm(WIDTH), Sing()

    def forward(self, own, others):
        mixed = self.sing(torch.cat([self.norm(own), others], 1))
        return own + mixed[:, : own.shape[1]], others + mixed[:, own.shape[1] :]


class Sing(nn.Module):
    def __init__(self):
        super().__init__()
        self.all, self.back = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens):
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in self.all(tokens).chunk(3, -1))
        return self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Chorus(nn.Module):
    """Tokens that mix from block to block; the reference comes as pixels at every step."""

    def __init__(self):
        super().__init__()
        self.enter, self.see = nn.Conv2d(4, WIDTH, 2, 2), nn.Conv2d(3, WIDTH, 8, 8)
        self.voices, self.leave = nn.ModuleList(Voice() for _ in range(2)), nn.Linear(WIDTH, 16)

    def forward(self, noisy, sigma, view, prompt):
        rows, columns = (side // 2 for side in noisy.shape[-2:])
        own = self.enter(noisy).flatten(2).transpose(1, 2) * (1 + sigma)
        others = torch.cat([self.see(view).flatten(2).transpose(1, 2), prompt], 1)
        for voice in self.voices:
            own, others = voice(own, others)
        return F.pixel_shuffle(self.leave(own).transpose(1, 2).unflatten(2, (rows, columns)), 2)


class Choir:
    def __init__(self):
        torch.manual_seed(2)
        self.chorus, self.sigmas = Chorus().eval(), torch.tensor([0.75, 0.5, 0.25])

    @torch.no_grad()
    def __call__(self, view, generator, size=(8, 12)):
        noisy, prompt = noise(generator, (4, *size)), torch.ones(1, 5, WIDTH)
        for sigma in self.sigmas:
            noisy = noisy - 0.3 * self.chorus(noisy, sigma, pixels(view), prompt.expand(len(noisy), -1, -1))
        return pictures(noisy)


class Reader(nn.Module):
    """Features that look at words, or at nothing."""

    def __init__(self, looks):
        super().__init__()
        self.look, self.looks = Look(), looks

    def forward(self, x, t, text):
        return self.look(x, text.transpose(1, 2)[..., None]) if self.looks else x


def reads(looks):
    def call(pipe):
        x, text = torch.randn(1, WIDTH, 4, 4), torch.randn(1, 5, WIDTH)
        for t in (2.0, 1.0):
            x = pipe.net(x, torch.tensor(t), text)

    return SimpleNamespace(net=Reader(looks)), call


def words():
    return reads(True)


def silent():
    return reads(False)


def once():
    """A denoiser that counts its calls."""
    pipe, call = reads(True)

    def forward(x, t, text):
        pipe.calls = getattr(pipe, "calls", 0) + 1
        if pipe.calls > 2:
            raise RuntimeError("once")
        return type(pipe.net).forward(pipe.net, x, t, text)

    pipe.net.forward = forward
    return pipe, call
