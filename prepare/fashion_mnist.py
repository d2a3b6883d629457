"""
Fashion-MNIST, articles of clothing in the format of MNIST (Xiao et al. 2017, arXiv 1708.07747): data/fashion_mnist.

    python prepare/fashion_mnist.py [--input=FOLDER] [--seed=0] [--name=NAME]

5,000 of the 60,000 training images are the validation split. If the download cannot be reached, Debian's package
dataset-fashion-mnist has the same files.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness import command
from prepare.mnist_images import make

URL = 'http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/'
FILES = {'train-images-idx3-ubyte.gz': '8d4fb7e6c68d591d4c3dfef9ec88bf0d',      # MD5
         'train-labels-idx1-ubyte.gz': '25c81989df183df01b3e8a0aad5dffbe',
         't10k-images-idx3-ubyte.gz': 'bef4ecab320f06d8554ea6380940ec79',
         't10k-labels-idx1-ubyte.gz': 'bb300cfdad3c16e7a12a480ee83cd310'}
PACKAGE = 'dataset-fashion-mnist', '39e172fe32dd318ebb3e512220c3beea2fa47d7e20bab348fb4e0922d6beefc0', 'apt-get'
SHA256 = '14410854cf7a289477dcfc7df3f8ec24741e281cdcc425ede0d9a748ca630214'     # of the four files, unzipped, one after another
LABELS = ['T-shirt', 'trouser', 'pullover', 'dress', 'coat', 'sandal', 'shirt', 'sneaker', 'bag', 'ankle boot']


if __name__ == '__main__':
    command(lambda argv: make(argv, __doc__, __file__, 'Fashion-MNIST', URL, FILES, PACKAGE, SHA256, LABELS))
