"""Training towards a teacher's answers: no labels, repeatable, in about the time that was asked."""

from dataclasses import replace

import torch
from torch import nn

from ticketlab.data.batches import Examples
from ticketlab.models import models
from ticketlab.training.distil import distil_steps, steps_in


def examples(count=600):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    return Examples(images, torch.zeros(count, dtype=torch.long), torch.tensor([[[1 / 128]]]), torch.tensor([[[-1.0]]]))


def network(seed, widths=None):
    torch.manual_seed(seed)
    return models.find("lenet_300_100")((1, 8, 8), 10, widths=widths)


def test_the_student_comes_closer_to_the_teacher():
    teacher, student = network(0), network(1, {"fc1": 20, "fc2": 10})
    losses = [float(step.loss) for step in distil_steps(student, teacher, examples(), 60, seed=0)]
    assert len(losses) == 60
    assert losses[-1] < losses[0]


def test_labels_are_never_read():
    teacher, results = network(0), []
    for labels in (examples().labels, torch.full((600,), -7)):
        student = network(1, {"fc1": 20, "fc2": 10})
        list(distil_steps(student, teacher, replace(examples(), labels=labels), 7, seed=3))
        results.append(student.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_the_teacher_answers_each_image_once():
    class Counting(nn.Module):
        seen = 0

        def forward(self, images):
            Counting.seen += len(images)
            return images.flatten(1)[:, :10]

    list(distil_steps(network(1, {"fc1": 20, "fc2": 10}), Counting(), examples(), 9, seed=0))
    assert Counting.seen == 600


def test_a_time_becomes_a_number_of_steps():
    student, teacher = network(1, {"fc1": 20, "fc2": 10}), network(0)
    before = student.fc1.weight.detach().clone()
    assert 1 <= steps_in(0.0001, student, teacher, examples()) < steps_in(2.0, student, teacher, examples())
    assert torch.equal(before, student.fc1.weight)
