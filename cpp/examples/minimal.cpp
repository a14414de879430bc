// The least that a program needs: a package, pixels, an answer. `minimal FOLDER IMAGE.ppm`, where
// the image is a binary PPM (P6), as `convert cat.jpg cat.ppm` writes.
#include <cifar_deploy/classifier.hpp>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

int main(int count, char** words) {
    if (count != 3) {
        std::cerr << "usage: minimal FOLDER IMAGE.ppm\n";
        return 2;
    }
    std::ifstream file(words[2], std::ios::binary);
    std::string kind;
    std::size_t width = 0, height = 0, largest = 0;
    file >> kind >> width >> height >> largest;
    file.get();
    const bool known = kind == "P6" && width <= 10000 && height <= 10000 && largest == 255;
    std::vector<std::uint8_t> rgb(known ? width * height * 3 : 0);
    file.read(reinterpret_cast<char*>(rgb.data()), static_cast<std::streamsize>(rgb.size()));
    if (!file || !known) {
        std::cerr << words[2] << " is no 8-bit binary PPM\n";
        return 2;
    }

    try {
        auto classifier = cifar_deploy::Classifier::load(words[1]);
        auto prediction = classifier.classify(rgb.data(), width, height);
        std::printf("%s %.1f %%\n", prediction.label.c_str(), 100.0 * prediction.probability);
    } catch (const cifar_deploy::Error& error) {
        std::cerr << error.what() << '\n';
        return 2;
    }
}
