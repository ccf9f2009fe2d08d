"""Networks with the suite's parameter names, order of construction and arithmetic."""

import torch.nn.functional as F
from torch import nn


class LeNet5(nn.Module):
    """LeNet-5 as it is used today: ReLU, maximum pooling, a linear output; padding 2 makes 28 x 28 pixels the paper's 32 x 32.

    61,706 parameters with one input channel and 10 classes.
    """

    def __init__(self, channels=1, size=(28, 28), classes=10, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        height, width = ((side // 2 - 4) // 2 for side in size)
        self.fc1 = nn.Linear(16 * height * width, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, classes)
        self.dropout = dropout

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.conv1(images)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2).flatten(1)
        x = F.dropout(F.relu(self.fc1(x)), self.dropout, self.training)
        x = F.dropout(F.relu(self.fc2(x)), self.dropout, self.training)
        return self.fc3(x)


class KerasCnn(nn.Module):
    """TensorFlow's "Convolutional Neural Network (CNN)" tutorial with features flattened channels first; 122,570 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.conv3 = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3), nn.Conv2d(64, 64, 3)
        self.fc1, self.fc2 = nn.Linear(1024, 64), nn.Linear(64, 10)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.conv1(images), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2)
        x = F.relu(self.conv3(x), inplace=True).flatten(1)
        return self.fc2(F.relu(self.fc1(x), inplace=True))


class TorchCnn(nn.Module):
    """Two padded convolutions with pooling, two dense layers; 545,098 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(4096, 128), nn.Linear(128, 10)

    def forward(self, images):
        x = F.max_pool2d(F.relu(self.conv1(images), inplace=True), 2)
        x = F.max_pool2d(F.relu(self.conv2(x), inplace=True), 2).flatten(1)
        return self.fc2(F.relu(self.fc1(x), inplace=True))


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions with a shortcut that pads new channels with zeros (He et al. 2015, option A)."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.bn2(self.conv2(x))
        if self.stride != 1 or self.padding:
            images = images[:, :, :: self.stride, :: self.stride]
            images = F.pad(images, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + images, inplace=True)


class ResNet20(nn.Module):
    """He et al. 2015, section 4.2, n = 3; 269,722 parameters."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        inputs = 16
        for group, width in enumerate((16, 32, 64), 1):
            first = CifarBlock(inputs, width, 1 if group == 1 else 2)
            setattr(self, f"layer{group}", nn.Sequential(first, CifarBlock(width, width, 1), CifarBlock(width, width, 1)))
            inputs = width
        self.fc = nn.Linear(64, 10)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
