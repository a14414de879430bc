// classify: the classes of image files, the package's self-test, or the accuracy on a test set.
// `classify --help`.
//
// Reads PPM and PGM, and PNG and JPEG where it was built with libpng and libjpeg, as
// `cifar-deploy predict` does: turned as EXIF says, 16 bits cut to 8, transparency dropped. (An
// orientation that stands in XMP alone is not followed.)
#include <cifar_deploy/classifier.hpp>
#include <cifar_deploy/evaluation.hpp>
#include <cifar_deploy/self_test.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <cmath>
#include <csetjmp>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#ifdef _WIN32
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

#include <shellapi.h>
#endif
#ifdef CLASSIFY_WITH_PNG
#include <png.h>
#endif
#ifdef CLASSIFY_WITH_JPEG
#include <jpeglib.h>

#include <jerror.h>
#endif

namespace classify {

using cifar_deploy::Error;
using cifar_deploy::ErrorCode;
using Bytes = std::vector<std::uint8_t>;
using cifar_deploy::detail::path_of;
using cifar_deploy::detail::text_of;

constexpr std::size_t largest_side = 65'535;       // pixels; the library takes no more either
#ifndef CLASSIFY_MOST_PIXELS
#define CLASSIFY_MOST_PIXELS 178'956'970  // as many as Pillow takes
#endif
constexpr std::size_t most_pixels = CLASSIFY_MOST_PIXELS;
constexpr std::uintmax_t largest_file = 1U << 30;  // bytes

struct Picture {
    std::size_t width = 0;
    std::size_t height = 0;
    Bytes rgb;  // height x width x 3
};

[[noreturn]] void refuse(const std::string& why) { throw Error(ErrorCode::bad_argument, why); }

// Makes room for the pixels. Throws Error for sizes that are none or too large.
void set_size(Picture& picture, std::size_t width, std::size_t height) {
    if (width == 0 || height == 0) refuse("its width or height is 0");
    if (width > largest_side || height > largest_side || width * height > most_pixels) {
        refuse("it is too large: " + std::to_string(width) + " x " + std::to_string(height));
    }
    picture.width = width;
    picture.height = height;
    picture.rgb.assign(width * height * 3, 0);
}

// --- EXIF ---------------------------------------------------------------------------------------

// The orientation, 1 to 8, in a TIFF block; 1 where it says none.
int orientation_in(const std::uint8_t* tiff, std::size_t size) {
    if (size < 8) return 1;
    const bool little = tiff[0] == 'I' && tiff[1] == 'I';
    if (!little && !(tiff[0] == 'M' && tiff[1] == 'M')) return 1;
    const auto number = [&](std::size_t at, std::size_t bytes) {
        std::size_t value = 0;
        for (std::size_t i = 0; i < bytes; ++i) {
            value = value << 8 | tiff[little ? at + bytes - 1 - i : at + i];
        }
        return value;
    };
    constexpr std::size_t version = 42;  // TIFF's; Pillow takes it in the other order of bytes too
    if (number(2, 2) != version && number(2, 2) != version << 8) return 1;
    const std::size_t table = number(4, 4);
    if (table > size || size - table < 2) return 1;
    const std::size_t entries = number(table, 2);
    for (std::size_t i = 0; i < entries; ++i) {
        const std::size_t entry = table + 2 + i * 12;
        if (entry + 12 > size) break;
        constexpr std::size_t orientation_tag = 0x0112;
        if (number(entry, 2) == orientation_tag) {
            const std::size_t type = number(entry + 2, 2);
            const std::size_t bytes = type == 3 ? 2 : type == 4 ? 4 : 0;  // SHORT, LONG
            const std::size_t count = number(entry + 4, 4);
            if (bytes == 0 || count == 0 || count > 4 / bytes) return 1;  // more stand elsewhere
            const std::size_t value = number(entry + 8, bytes);
            return value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
        }
    }
    return 1;
}

// The same in the text of a PNG, as ImageMagick wrote it before there was a chunk for EXIF: an empty
// line, a name, a length, and lines of hexadecimal digits.
int raw_profile_orientation(std::string_view text) {
    for (int line = 0; line < 3; ++line) {
        const std::size_t end = text.find('\n');
        if (end == text.npos) return 1;
        text.remove_prefix(end + 1);
    }
    Bytes exif;
    constexpr std::string_view digits = "0123456789abcdef";
    std::size_t high = digits.npos;
    for (const char character : text) {
        const int lower = std::tolower(static_cast<unsigned char>(character));
        const std::size_t value = digits.find(static_cast<char>(lower));
        if (value == digits.npos) continue;
        if (high == digits.npos) {
            high = value;
        } else {
            exif.push_back(static_cast<std::uint8_t>(high * 16 + value));
            high = digits.npos;
        }
    }
    const std::size_t head = exif.size() > 6 && std::memcmp(exif.data(), "Exif\0\0", 6) == 0 ? 6 : 0;
    return orientation_in(exif.data() + head, exif.size() - head);
}

// The picture as an EXIF orientation says it is to be seen.
Picture turned(Picture picture, int orientation) {
    if (orientation <= 1) return picture;
    const bool sideways = orientation >= 5;
    Picture result;
    set_size(result, sideways ? picture.height : picture.width,
             sideways ? picture.width : picture.height);
    const bool right_to_left =
        orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const bool bottom_to_top =
        orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    for (std::size_t y = 0; y < result.height; ++y) {
        for (std::size_t x = 0; x < result.width; ++x) {
            std::size_t from_x = sideways ? y : x;
            std::size_t from_y = sideways ? x : y;
            if (right_to_left) from_x = picture.width - 1 - from_x;
            if (bottom_to_top) from_y = picture.height - 1 - from_y;
            std::memcpy(&result.rgb[(y * result.width + x) * 3],
                        &picture.rgb[(from_y * picture.width + from_x) * 3], 3);
        }
    }
    return result;
}

// --- PPM, PGM -----------------------------------------------------------------------------------

Picture read_pnm(const std::string& file) {
    const bool colour = file[1] == '6';
    std::size_t at = 2;
    const auto number = [&] {
        while (at < file.size() && (std::strchr(" \t\r\n\v\f", file[at]) || file[at] == '#')) {
            if (file[at] == '#') {
                while (at < file.size() && file[at] != '\n') ++at;
            } else {
                ++at;
            }
        }
        std::size_t value = 0;
        const std::size_t start = at;
        for (; at < file.size() && file[at] >= '0' && file[at] <= '9'; ++at) {
            value = value * 10 + static_cast<std::size_t>(file[at] - '0');
            if (value > 1'000'000) refuse("a number in its header is too large");
        }
        if (at == start) refuse("its header is damaged");
        return value;
    };
    Picture picture;
    const std::size_t width = number();
    const std::size_t height = number();
    const std::size_t largest = number();
    ++at;  // one blank
    if (largest == 0 || largest > 255) refuse("it has not 8 bits a channel; convert it to PNG");
    const std::size_t channels = colour ? 3 : 1;
    if (width == 0 || height == 0 || width > largest_side || height > largest_side ||
        at > file.size() || file.size() - at < width * height * channels) {
        refuse("it is truncated, or its header is damaged");
    }
    set_size(picture, width, height);
    // As Pillow, in double and halves to even.
    std::array<std::uint8_t, 256> scaled{};
    for (std::size_t value = 0; value < scaled.size(); ++value) {
        const double share = static_cast<double>(value) / static_cast<double>(largest);
        scaled[value] = static_cast<std::uint8_t>(std::min(std::nearbyint(share * 255), 255.0));
    }
    for (std::size_t i = 0; i < picture.rgb.size(); ++i) {
        picture.rgb[i] = scaled[static_cast<std::uint8_t>(file[at + (colour ? i : i / 3)])];
    }
    return picture;
}

// --- PNG ----------------------------------------------------------------------------------------

#ifdef CLASSIFY_WITH_PNG
struct PngSource {
    const std::string* file;
    std::size_t at;
    char message[200];
};

// libpng jumps out of its functions with longjmp: what stands between is plain C, without
// destructors, and each step that can jump has its own function.
void png_fail(png_structp png, png_const_charp text) {
    auto* source = static_cast<PngSource*>(png_get_error_ptr(png));
    std::snprintf(source->message, sizeof source->message, "%s", text);
    png_longjmp(png, 1);
}

void png_ignore(png_structp, png_const_charp) {}

void png_supply(png_structp png, png_bytep to, std::size_t size) {
    auto* source = static_cast<PngSource*>(png_get_io_ptr(png));
    if (size > source->file->size() - source->at) png_error(png, "it is truncated");
    std::memcpy(to, source->file->data() + source->at, size);
    source->at += size;
}

bool png_header(png_structp png, png_infop info) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_set_user_limits(png, largest_side, largest_side);
    png_read_info(png, info);
    png_set_strip_16(png);
    png_set_palette_to_rgb(png);
    png_set_expand_gray_1_2_4_to_8(png);
    png_set_gray_to_rgb(png);
    png_set_strip_alpha(png);
    static_cast<void>(png_set_interlace_handling(png));
    png_read_update_info(png, info);
    return true;
}

bool png_pixels(png_structp png, png_bytepp rows) {
    if (setjmp(png_jmpbuf(png))) return false;
    png_read_image(png, rows);
    return true;
}

// What stands after the pixels; a file that is not whole there is a picture for Pillow too.
void png_rest(png_structp png, png_infop info) {
    if (setjmp(png_jmpbuf(png))) return;
    png_read_end(png, info);
}

int png_orientation(png_structp png, png_infop info) {
#ifdef PNG_eXIf_SUPPORTED
    png_bytep exif = nullptr;
    png_uint_32 size = 0;
    if (png_get_eXIf_1(png, info, &size, &exif) != 0) return orientation_in(exif, size);
#endif
    png_textp texts = nullptr;
    const int count = png_get_text(png, info, &texts, nullptr);
    for (int i = 0; i < count; ++i) {
        if (std::strcmp(texts[i].key, "Raw profile type exif") == 0) {
            return raw_profile_orientation(texts[i].text);
        }
    }
    return 1;
}

Picture read_png(const std::string& file) {
    struct Reader {
        png_structp png = nullptr;
        png_infop info = nullptr;
        ~Reader() { png_destroy_read_struct(&png, &info, nullptr); }
    } reader;
    PngSource source{&file, 0, {}};
    reader.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &source, png_fail, png_ignore);
    if (reader.png != nullptr) reader.info = png_create_info_struct(reader.png);
    if (reader.info == nullptr) refuse("libpng cannot start");
    png_set_read_fn(reader.png, &source, png_supply);
    if (!png_header(reader.png, reader.info)) refuse(source.message);
    Picture picture;
    set_size(picture, png_get_image_width(reader.png, reader.info),
             png_get_image_height(reader.png, reader.info));
    if (png_get_rowbytes(reader.png, reader.info) != picture.width * 3) {
        refuse("it is of a kind of PNG that is not read here");
    }
    std::vector<png_bytep> rows(picture.height);
    for (std::size_t y = 0; y < rows.size(); ++y) rows[y] = &picture.rgb[y * picture.width * 3];
    if (!png_pixels(reader.png, rows.data())) refuse(source.message);
    png_rest(reader.png, reader.info);
    return turned(std::move(picture), png_orientation(reader.png, reader.info));
}
#endif

// --- JPEG ---------------------------------------------------------------------------------------

#ifdef CLASSIFY_WITH_JPEG
struct JpegErrors {
    jpeg_error_mgr manager;  // first: libjpeg hands back a pointer to it
    std::jmp_buf out;
    char message[JMSG_LENGTH_MAX];
};

void jpeg_fail(j_common_ptr jpeg) {
    auto* errors = reinterpret_cast<JpegErrors*>(jpeg->err);
    (*jpeg->err->format_message)(jpeg, errors->message);
    std::longjmp(errors->out, 1);
}

// As Pillow does: a truncated file is refused, and after other damage libjpeg goes on.
void jpeg_warn(j_common_ptr jpeg, int level) {
    if (level < 0 && jpeg->err->msg_code == JWRN_JPEG_EOF) jpeg_fail(jpeg);
}

bool jpeg_header(jpeg_decompress_struct* jpeg, JpegErrors* errors, const std::string& file) {
    if (setjmp(errors->out)) return false;
    jpeg_mem_src(jpeg, reinterpret_cast<const unsigned char*>(file.data()),
                 static_cast<unsigned long>(file.size()));
    constexpr int exif_marker = JPEG_APP0 + 1;
    jpeg_save_markers(jpeg, exif_marker, 0xFFFF);
    jpeg_read_header(jpeg, TRUE);
    jpeg->out_color_space = JCS_RGB;  // three bytes a pixel
    return true;
}

// Of a progressive file it decodes all coefficients, so the size has to be known to be sensible.
bool jpeg_start(jpeg_decompress_struct* jpeg, JpegErrors* errors) {
    if (setjmp(errors->out)) return false;
    jpeg_start_decompress(jpeg);
    return true;
}

bool jpeg_pixels(jpeg_decompress_struct* jpeg, JpegErrors* errors, std::uint8_t* to) {
    if (setjmp(errors->out)) return false;
    while (jpeg->output_scanline < jpeg->output_height) {
        JSAMPROW row = to + std::size_t{jpeg->output_scanline} * jpeg->output_width * 3;
        jpeg_read_scanlines(jpeg, &row, 1);
    }
    jpeg_finish_decompress(jpeg);
    return true;
}

Picture read_jpeg(const std::string& file) {
    JpegErrors errors{};
    struct Reader {
        jpeg_decompress_struct jpeg{};
        ~Reader() { jpeg_destroy_decompress(&jpeg); }
    } reader;
    reader.jpeg.err = jpeg_std_error(&errors.manager);
    errors.manager.error_exit = jpeg_fail;
    errors.manager.emit_message = jpeg_warn;
    if (setjmp(errors.out)) refuse("libjpeg cannot start");
    jpeg_create_decompress(&reader.jpeg);
    if (!jpeg_header(&reader.jpeg, &errors, file)) refuse(errors.message);
    if (reader.jpeg.jpeg_color_space == JCS_CMYK || reader.jpeg.jpeg_color_space == JCS_YCCK) {
        refuse("it is not in RGB; convert it to PNG");  // which libjpeg does not do
    }
    Picture picture;
    set_size(picture, reader.jpeg.image_width, reader.jpeg.image_height);
    if (!jpeg_start(&reader.jpeg, &errors)) refuse(errors.message);
    int orientation = 1;
    for (auto* marker = reader.jpeg.marker_list; marker != nullptr; marker = marker->next) {
        if (marker->data_length > 6 && std::memcmp(marker->data, "Exif\0\0", 6) == 0) {
            orientation = orientation_in(marker->data + 6, marker->data_length - 6);
            break;
        }
    }
    if (!jpeg_pixels(&reader.jpeg, &errors, picture.rgb.data())) refuse(errors.message);
    return turned(std::move(picture), orientation);
}
#endif

// --- the program --------------------------------------------------------------------------------

// The picture in the bytes of a file. Throws Error where it is none that can be read here.
Picture decode(const std::string& file) {
    const std::string_view bytes(file);
    if (bytes.substr(0, 2) == "P6" || bytes.substr(0, 2) == "P5") return read_pnm(file);
    if (bytes.substr(0, 8) == "\x89PNG\r\n\x1a\n") {
#ifdef CLASSIFY_WITH_PNG
        return read_png(file);
#else
        refuse("it is a PNG, and this program was built without libpng");
#endif
    }
    if (bytes.substr(0, 3) == "\xff\xd8\xff") {
#ifdef CLASSIFY_WITH_JPEG
        return read_jpeg(file);
#else
        refuse("it is a JPEG, and this program was built without libjpeg");
#endif
    }
    refuse("it is no PNG, JPEG, binary PPM or PGM (P6, P5)");
}

Picture read_picture(const std::string& path) {
    const std::string file = cifar_deploy::detail::read_file(path_of(path), largest_file);
    try {
        return decode(file);
    } catch (const Error& error) {
        throw Error(error.code(), path + " cannot be read as an image: " + error.what());
    }
}

constexpr const char* usage =
    "usage: classify FOLDER [options] IMAGE...\n"
    "       classify FOLDER [options] --self-test\n"
    "       classify FOLDER [options] --evaluate IMAGES\n"
    "\n"
    "FOLDER is what `cifar-deploy package MODEL --target cpp` wrote; without it, the folder\n"
    "in which the program is started. Prints the likeliest classes of each image.\n"
    "\n"
    "  --self-test      run the package's test vectors: PASS, or the image that differs\n"
    "  --evaluate IMAGES  accuracy on IMAGES/<class>/*, or on a file such as CIFAR-10's\n"
    "                   test_batch.bin: PASS where they are the images that the file was proved on,\n"
    "                   and it is as good here\n"
    "  --top N          as many classes (3)\n"
    "  --logits         print all logits too\n"
    "  --backend NAME   auto, openvino, onnxruntime, tensorrt, tensorrt-rtx (auto)\n"
    "  --device NAME    auto, cpu, cuda, cuda:N (auto)\n"
    "  --threads N      of the CPU (as the runtime thinks right)\n"
    "\n"
    "Exit status: 0; 1 where the self-test or --evaluate fails; 2 for what you can mend; 3 where\n"
    "--evaluate has no such images to compare with, and its accuracy proves nothing.\n";

struct Arguments {
    std::string folder;
    std::vector<std::string> images;
    std::string evaluated;
    cifar_deploy::LoadOptions options;
    std::size_t top = 3;
    bool self_test = false;
    bool logits = false;
    bool help = false;
};

std::size_t natural(const std::string& option, const std::string& text,
                    std::size_t most = 999'999) {
    const bool digits = !text.empty() && text.size() <= 6 &&
                        text.find_first_not_of("0123456789") == std::string::npos;
    const std::size_t number = digits ? std::stoul(text) : 0;
    if (number == 0 || number > most) {
        refuse(option + " " + text + ": give a number from 1 to " + std::to_string(most));
    }
    return number;
}

cifar_deploy::Backend backend_named(const std::string& name) {
    using cifar_deploy::Backend;
    const std::array<std::pair<const char*, Backend>, 5> names{{{"auto", Backend::automatic},
                                                                {"openvino", Backend::openvino},
                                                                {"onnxruntime", Backend::onnxruntime},
                                                                {"tensorrt", Backend::tensorrt},
                                                                {"tensorrt-rtx",
                                                                 Backend::tensorrt_rtx}}};
    for (const auto& [known, backend] : names) {
        if (name == known) return backend;
    }
    refuse("--backend " + name + ": it can be auto, openvino, onnxruntime, tensorrt, tensorrt-rtx");
}

Arguments parse(int count, char** words) {
    Arguments arguments;
    std::vector<std::string> plain;
    for (int i = 1; i < count; ++i) {
        const std::string word = words[i];
        const auto value = [&] {
            if (++i >= count || *words[i] == '\0') refuse(word + " needs a value; see classify --help");
            return std::string(words[i]);
        };
        if (word == "--help" || word == "-h") {
            arguments.help = true;
        } else if (word == "--self-test") {
            arguments.self_test = true;
        } else if (word == "--evaluate") {
            arguments.evaluated = value();
        } else if (word == "--logits") {
            arguments.logits = true;
        } else if (word == "--top") {
            arguments.top = natural(word, value());
        } else if (word == "--threads") {
            arguments.options.threads = static_cast<unsigned>(
                natural(word, value(), cifar_deploy::detail::most_threads));
        } else if (word == "--backend") {
            arguments.options.backend = backend_named(value());
        } else if (word == "--device") {
            arguments.options.device = value();
        } else if (word.size() > 1 && word[0] == '-') {
            refuse("there is no option " + word + "; see classify --help");
        } else {
            plain.push_back(word);
        }
    }
    std::error_code ignored;
    const bool named = !plain.empty() && (std::filesystem::is_directory(path_of(plain[0]), ignored) ||
                                          !std::filesystem::exists("manifest.txt", ignored));
    arguments.folder = named ? plain[0] : ".";
    arguments.images.assign(plain.begin() + (named ? 1 : 0), plain.end());
    if (!arguments.help && !arguments.self_test && arguments.evaluated.empty() &&
        arguments.images.empty()) {
        refuse("name an image, or give --self-test or --evaluate; see classify --help");
    }
    return arguments;
}

void print(const std::string& path, const cifar_deploy::Prediction& prediction,
           const cifar_deploy::Classifier& classifier, const Arguments& arguments) {
    const std::vector<float> probabilities = prediction.probabilities();
    std::printf("%s:", path.c_str());
    const char* comma = "";
    for (const std::size_t i : cifar_deploy::top(prediction, arguments.top)) {
        std::printf("%s %s %.1f %%", comma, classifier.labels()[i].c_str(),
                    100 * static_cast<double>(probabilities[i]));
        comma = ",";
    }
    std::printf("\n");
    if (!arguments.logits) return;
    std::printf("  logits:");
    for (const float logit : prediction.logits) std::printf(" %.7g", static_cast<double>(logit));
    std::printf("\n");
}

// --- the accuracy on a test set -----------------------------------------------------------------

namespace fs = std::filesystem;

// CIFAR-10's binary version: of each image a byte for its class, and 1,024 each of red, green, blue.
void add_records(cifar_deploy::Evaluator& evaluator, const fs::path& file, std::size_t classes) {
    constexpr std::size_t side = 32;
    constexpr std::size_t plane = side * side;
    constexpr std::size_t record = 1 + 3 * plane;
    const std::string bytes = cifar_deploy::detail::read_file(file, largest_file);
    if (bytes.empty() || bytes.size() % record != 0) {
        refuse(text_of(file) + " is neither a folder of classes nor a file as CIFAR-10's "
                               "test_batch.bin: it has no records of 3,073 bytes");
    }
    Bytes rgb(3 * plane);
    for (std::size_t at = 0; at < bytes.size(); at += record) {
        const std::size_t label = static_cast<std::uint8_t>(bytes[at]);
        if (label >= classes) {
            refuse(text_of(file) + ": record " + std::to_string(at / record) + " is of class " +
                   std::to_string(label) + ", and the model knows " + std::to_string(classes));
        }
        for (std::size_t i = 0; i < rgb.size(); ++i) {
            rgb[i] = static_cast<std::uint8_t>(bytes[at + 1 + i % 3 * plane + i / 3]);
        }
        evaluator.add({rgb.data(), side, side}, label);
    }
}

// What is no image of a class: hidden, or Windows'.
bool is_left_out(std::string name) {
    if (name[0] == '.') return true;
    for (char& c : name) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
    return name == "thumbs.db" || name == "desktop.ini";
}

// Folders called as the classes.
void add_folders(cifar_deploy::Evaluator& evaluator, const fs::path& root,
                 const std::vector<std::string>& labels) {
    bool any = false;
    for (const auto& folder : fs::directory_iterator(root)) {
        const std::string name = text_of(folder.path().filename());
        if (is_left_out(name) || !folder.is_directory()) continue;
        const auto label = std::find(labels.begin(), labels.end(), name);
        if (label == labels.end()) {
            const bool plain = std::all_of(name.begin(), name.end(), [](char c) {
                return static_cast<unsigned char>(c) < 0x80;
            });
            refuse(text_of(folder.path()) + " is called as no class that the model knows" +
                   (plain ? "" : " (its letters may be composed otherwise: rename it)"));
        }
        for (const auto& file : fs::directory_iterator(folder.path())) {
            if (is_left_out(text_of(file.path().filename()))) continue;
            const Picture picture = read_picture(text_of(file.path()));
            evaluator.add({picture.rgb.data(), picture.width, picture.height},
                          static_cast<std::size_t>(label - labels.begin()));
            any = true;
        }
    }
    if (!any) refuse(text_of(root) + " holds no images; they go to its <class>/*");
}

cifar_deploy::Evaluation evaluate(cifar_deploy::Classifier& classifier, const std::string& path) {
    cifar_deploy::Evaluator evaluator(classifier);
    std::error_code ignored;
    const fs::path where = path_of(path), inside = where / "test_batch.bin";
    if (!fs::is_directory(where, ignored)) {
        add_records(evaluator, where, classifier.labels().size());
    } else if (fs::exists(inside, ignored)) {
        add_records(evaluator, inside, classifier.labels().size());
    } else {
        add_folders(evaluator, where, classifier.labels());
    }
    return evaluator.result();
}

int run(int count, char** words) {
    const Arguments arguments = parse(count, words);
    if (arguments.help) {
        std::fputs(usage, stdout);
        return 0;
    }
    auto classifier = cifar_deploy::Classifier::load(arguments.folder, arguments.options);
    if (arguments.self_test) {
        const auto result = cifar_deploy::self_test(classifier);
        std::printf("%s (%s)\n", result.text.c_str(), classifier.runtime().c_str());
        if (!result.passed) return 1;
    }
    if (!arguments.evaluated.empty()) {
        const auto result = evaluate(classifier, arguments.evaluated);
        std::printf("%s (%s)\n", result.text.c_str(), classifier.runtime().c_str());
        if (!result.passed) return result.comparable ? 1 : 3;
    }
    for (const std::string& path : arguments.images) {
        const Picture picture = read_picture(path);
        print(path, classifier.classify(picture.rgb.data(), picture.width, picture.height),
              classifier, arguments);
    }
    return 0;
}

}  // namespace classify

#ifndef CLASSIFY_WITHOUT_MAIN
#ifdef _WIN32
// The words of the command line in UTF-8: `main` has them in the system's code page.
std::vector<std::string> words_of_windows() {
    int count = 0;
    wchar_t** const wide = CommandLineToArgvW(GetCommandLineW(), &count);
    if (wide == nullptr) throw std::runtime_error("the command line cannot be read");
    std::vector<std::string> words;
    for (int i = 0; i < count; ++i) words.push_back(classify::text_of(wide[i]));
    LocalFree(wide);
    return words;
}
#endif

int main(int count, char** words) {
    try {
#ifdef _WIN32
        SetConsoleOutputCP(CP_UTF8);
        std::vector<std::string> texts = words_of_windows();
        std::vector<char*> pointers;
        for (std::string& text : texts) pointers.push_back(text.data());
        count = static_cast<int>(pointers.size());
        words = pointers.data();
#endif
        const int status = classify::run(count, words);
        if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
            throw std::runtime_error("cannot write standard output");
        }
        return status;
    } catch (const std::exception& error) {
        std::fprintf(stderr, "classify: %s\n", error.what());
        return 2;
    }
}
#endif
